"""Networks for the data sets."""

from leadfl_pl.models.networks import (
    CIFAR10Net,
    DigitsNet,
    FashionMNISTNet,
    Normalize,
    ResNet18,
    SoftmaxRegression,
)

__all__ = [
    "CIFAR10Net",
    "DigitsNet",
    "FashionMNISTNet",
    "Normalize",
    "ResNet18",
    "SoftmaxRegression",
]
