"""Data sets, and how they are split over the clients."""

from leadfl_pl.data.base import FederatedDataModule, ImageSet, TensorBatches
from leadfl_pl.data.digits import Digits
from leadfl_pl.data.fashion_mnist import FashionMNIST
from leadfl_pl.data.partition import IID, Split

__all__ = [
    "IID",
    "Digits",
    "FashionMNIST",
    "FederatedDataModule",
    "ImageSet",
    "Split",
    "TensorBatches",
]
