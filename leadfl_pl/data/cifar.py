"""CIFAR10 and CIFAR100 from torchvision's folder, or downloaded."""

from __future__ import annotations

from typing import Any

import torchvision

from leadfl_pl.data.downloaded import DownloadedData


class CIFAR10(DownloadedData):
    """50,000 training and 10,000 test images of 3 x 32 x 32 pixels in 10 classes.

    Args:
        data_dir: as torchvision's ``root``; the files are in ``cifar-10-batches-py`` under it.
        split, batch_size, eval_batch_size: see :class:`FederatedDataModule`.

    Raises:
        ConfigError: from ``prepare_data`` and ``setup``, if there is no undamaged data set and it
            cannot be downloaded.

    References:
        Krizhevsky. Learning Multiple Layers of Features from Tiny Images. Technical report,
        University of Toronto, 2009.
    """

    image_shape = (3, 32, 32)
    num_classes = 10
    files = "cifar-10-python.tar.gz into {}"

    def dataset(self, train: bool, download: bool) -> Any:
        return torchvision.datasets.CIFAR10(str(self.data_dir), train, download=download)


class CIFAR100(DownloadedData):
    """50,000 training and 10,000 test images of 3 x 32 x 32 pixels in 100 (fine) classes.

    Args:
        data_dir: as torchvision's ``root``; the files are in ``cifar-100-python`` under it.
        split, batch_size, eval_batch_size: see :class:`FederatedDataModule`.

    Raises:
        ConfigError: as :class:`CIFAR10`.

    References:
        Krizhevsky 2009, see :class:`CIFAR10`.
    """

    image_shape = (3, 32, 32)
    num_classes = 100
    files = "cifar-100-python.tar.gz into {}"

    def dataset(self, train: bool, download: bool) -> Any:
        return torchvision.datasets.CIFAR100(str(self.data_dir), train, download=download)
