"""Networks for the data sets. Images come in raw pixel scale; the first layer normalises them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from leadfl_pl.core.errors import require_choice, require_number, require_numbers

Norm = Literal["batch", "group"]
RGB = tuple[float, float, float]


class Normalize(nn.Module):
    """(x - mean) / std for each channel of (B, C, H, W).

    Normalisation is part of the network, so that triggers are written in raw pixels. The
    constants are not in the state dict and never travel to the server.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        for key, values, above in (("mean", mean, -inf), ("std", std, 0.0)):
            for value in values if isinstance(values, Sequence) else [values]:
                require_number("Normalize", key, value, above=above)
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class ImageNetwork(nn.Sequential):
    """Layers in ``torch.channels_last``: the channels of a pixel lie side by side in memory.

    PyTorch's CPU kernels, max pooling's most of all, are vectorised over what lies side by side.
    In FashionMNISTNet and DigitsNet max pooling stands before the ReLU, which gives the same values
    from a quarter of the work.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.to(memory_format=torch.channels_last)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with gcd(channels, 8) groups.

    >>> group_norm(12).num_groups
    4
    """
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def norm_layer(owner: str, norm: str) -> Callable[[int], nn.Module]:
    """What makes ``owner``'s normalisation layers, from a number of channels.

    GroupNorm has no running statistics: nothing but trained parameters travels to the server, and
    nothing in the network depends on the other images of a batch.

    Raises:
        ConfigError: ``norm`` is neither ``"batch"`` nor ``"group"``.
    """
    require_choice(owner, "norm", norm, ("batch", "group"))
    return nn.BatchNorm2d if norm == "batch" else group_norm


class FashionMNISTNet(ImageNetwork):
    """The network of Guthmann and Tan's report for 1 x 28 x 28 images, 29,034 parameters.

    Two blocks of conv 5 x 5 (pad 2), BatchNorm, ReLU, max pooling by 2, with 16 and 32 channels;
    linear 1568 to 10.

    Args:
        num_classes: length of the logits.
        mean, std: normalisation constants, FashionMNIST's by default; 0 and 1 for none.
        norm: ``"batch"``, or ``"group"`` for GroupNorm in its place, see :func:`norm_layer`.

    Raises:
        ConfigError: another ``norm``.
    """

    def __init__(
        self,
        num_classes: int = 10,
        mean: float = 0.2860,
        std: float = 0.3530,
        norm: Norm = "batch",
    ) -> None:
        make_norm = norm_layer("FashionMNISTNet", norm)
        super().__init__(
            Normalize(mean, std),
            nn.Conv2d(1, 16, kernel_size=5, padding=2),
            make_norm(16),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=5, padding=2),
            make_norm(32),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, num_classes),
        )


class DigitsNet(ImageNetwork):
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
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, num_classes),
        )


class SoftmaxRegression(nn.Sequential):
    """Softmax regression on raw pixels, whose loss is convex; 650 parameters for the digits.

    Args:
        image_shape: (C, H, W), the digits' by default.
        num_classes: length of the logits.

    Raises:
        ConfigError: a size or a number of classes below 1.

    >>> SoftmaxRegression()(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, image_shape: Sequence[int] = (1, 8, 8), num_classes: int = 10) -> None:
        require_numbers("SoftmaxRegression", "image_shape", image_shape, least=1, length=3)
        require_number("SoftmaxRegression", "num_classes", num_classes, least=1, whole=True)
        super().__init__(nn.Flatten(), nn.Linear(math.prod(image_shape), num_classes))


class CIFAR10Net(ImageNetwork):
    """The network of Guthmann and Tan's report for 3 x 32 x 32 images, 551,466 parameters.

    Three blocks of two times [conv 3 x 3 (pad 1), ReLU, BatchNorm] and max pooling by 2, with 32,
    64 and 128 channels; linear 2048 to 128; linear 128 to 10.

    Args:
        num_classes: length of the logits.
        mean, std: normalisation constants for each channel, CIFAR10's by default.
        norm: ``"batch"``, or ``"group"`` for GroupNorm in its place, see :func:`norm_layer`.

    Raises:
        ConfigError: another ``norm``.

    >>> CIFAR10Net()(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Differences:
        1. The released network ends in a softmax, before a cross-entropy that has its own. Here
           it ends in the logits.
        2. As in the released network, nothing bends between the two linear layers.
    """

    def __init__(
        self,
        num_classes: int = 10,
        mean: RGB = (0.4914, 0.4822, 0.4465),
        std: RGB = (0.2470, 0.2435, 0.2616),
        norm: Norm = "batch",
    ) -> None:
        make_norm = norm_layer("CIFAR10Net", norm)
        layers: list[nn.Module] = [Normalize(mean, std)]
        for before, channels in ((3, 32), (32, 64), (64, 128)):
            for inputs in (before, channels):
                convolution = nn.Conv2d(inputs, channels, kernel_size=3, padding=1)
                layers += [convolution, nn.ReLU(), make_norm(channels)]
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Flatten(), nn.Linear(128 * 4 * 4, 128), nn.Linear(128, num_classes)]
        super().__init__(*layers)


class ResNet18(ImageNetwork):
    """torchvision's ResNet-18 with a stem for 3 x 32 x 32 images, 11,220,132 parameters.

    The first convolution is 3 x 3 with stride 1 (pad 1), and no max pooling follows it.

    Args:
        num_classes: length of the logits.
        mean, std: normalisation constants for each channel, CIFAR100's by default.
        norm: ``"batch"``, or ``"group"`` for GroupNorm in its place, see :func:`norm_layer`.

    Raises:
        ConfigError: another ``norm``.

    References:
        He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.

    Differences:
        1. The paper's networks for CIFAR (its section 4.2) are thinner, with 16 to 64 channels;
           this is its ImageNet network, 64 to 512, less the two early reductions in size.
    """

    def __init__(
        self,
        num_classes: int = 100,
        mean: RGB = (0.5071, 0.4865, 0.4409),
        std: RGB = (0.2673, 0.2564, 0.2762),
        norm: Norm = "batch",
    ) -> None:
        network = resnet18(num_classes=num_classes, norm_layer=norm_layer("ResNet18", norm))
        stem = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        network.conv1, network.maxpool = stem, nn.Identity()
        super().__init__(Normalize(mean, std), network)
