"""MNIST from torchvision's folder, or downloaded."""

from __future__ import annotations

from typing import Any

import torchvision

from leadfl_pl.data.downloaded import DownloadedData


class MNIST(DownloadedData):
    """60,000 training and 10,000 test images of handwritten digits of 28 x 28 pixels.

    Args:
        data_dir: as torchvision's ``root``; the files are in ``MNIST/raw`` under it.
        split, batch_size, eval_batch_size: see :class:`FederatedDataModule`.

    Raises:
        ConfigError: from ``prepare_data`` and ``setup``, if there is no undamaged data set and it
            cannot be downloaded. torchvision checks a download by its MD5, but files that lie
            there unpacked by their header and size only.

    References:
        LeCun, Bottou, Bengio, Haffner. Gradient-Based Learning Applied to Document Recognition.
        Proceedings of the IEEE, 1998.
    """

    image_shape = (1, 28, 28)
    num_classes = 10
    files = "MNIST's four .gz files, unpacked, into {}/MNIST/raw"

    def dataset(self, train: bool, download: bool) -> Any:
        return torchvision.datasets.MNIST(str(self.data_dir), train, download=download)
