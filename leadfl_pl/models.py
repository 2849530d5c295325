"""The report's networks. Images come in raw pixel scale; the first layer normalises them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(x - mean) / std for each channel of (B, C, H, W).

    Normalisation is part of the network, so that triggers are written in raw pixels. The
    constants are not in the state dict and never travel to the server.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class FashionMNISTNet(nn.Sequential):
    """The report's network for 1 x 28 x 28 images, 29,034 parameters.

    Two blocks of conv 5 x 5 (pad 2), BatchNorm, ReLU, max pooling by 2, with 16 and 32 channels;
    linear 1568 to 10.

    Args:
        num_classes: length of the logits.
        mean, std: normalisation constants, FashionMNIST's by default; 0 and 1 for none.
    """

    def __init__(self, num_classes: int = 10, mean: float = 0.2860, std: float = 0.3530) -> None:
        super().__init__(
            Normalize(mean, std),
            nn.Conv2d(1, 16, kernel_size=5, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=5, padding=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, num_classes),
        )


class DigitsNet(nn.Sequential):
    """A small convolutional network for scikit-learn's 1 x 8 x 8 digits, 2,730 parameters.

    Conv 3 x 3 (pad 1) with 16 channels, ReLU, max pooling by 2; linear 256 to 10.

    Args:
        num_classes: length of the logits.
        mean, std: normalisation constants, the digits' by default.
    """

    def __init__(self, num_classes: int = 10, mean: float = 0.3053, std: float = 0.3760) -> None:
        super().__init__(
            Normalize(mean, std),
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, num_classes),
        )
