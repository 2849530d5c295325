"""The handwritten digits that scikit-learn ships: the data set that needs no download."""

from __future__ import annotations

import torch

from leadfl_pl.data.base import FederatedDataModule, ImageSet


class Digits(FederatedDataModule):
    """1,797 handwritten digits of 8 x 8 pixels, scaled to [0, 1].

    Every fifth image is a test image: 360 for testing, 1,437 for training, which gives 100
    clients 14 or 15 images each.

    References:
        Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. UCI, 1998 (its test set, as
        scikit-learn ships it).
    """

    image_shape = (1, 8, 8)
    num_classes = 10

    def load(self) -> tuple[ImageSet, ImageSet]:
        from sklearn.datasets import load_digits  # slow to import

        digits = load_digits()
        images = torch.from_numpy(digits.images).float().div_(16).unsqueeze(1)
        labels = torch.from_numpy(digits.target).long()
        test = torch.arange(len(labels)) % 5 == 0
        return ImageSet(images[~test], labels[~test]), ImageSet(images[test], labels[test])
