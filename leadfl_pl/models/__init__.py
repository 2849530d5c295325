"""Networks for the data sets."""

from leadfl_pl.models.networks import CIFAR10Net, DigitsNet, FashionMNISTNet, ResNet18

__all__ = ["CIFAR10Net", "DigitsNet", "FashionMNISTNet", "ResNet18"]
