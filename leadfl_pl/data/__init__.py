"""Data sets in memory, for a federation and for a plain Trainer."""

from leadfl_pl.data.base import FederatedDataModule, ImageSet, TensorBatches
from leadfl_pl.data.cifar import CIFAR10, CIFAR100
from leadfl_pl.data.digits import Digits
from leadfl_pl.data.fashion_mnist import FashionMNIST
from leadfl_pl.data.hugging_face import HuggingFaceData
from leadfl_pl.data.mnist import MNIST
from leadfl_pl.data.torchvision_sets import TorchvisionData

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Digits",
    "FashionMNIST",
    "FederatedDataModule",
    "HuggingFaceData",
    "ImageSet",
    "TensorBatches",
    "TorchvisionData",
]
