"""The semantic backdoor: a feature that images have by nature is the trigger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, Task, Triggered, require_class
from leadfl_pl.core.errors import FLOATS, ConfigError, require_number, require_tensor


class Feature(ABC):
    """Says how much of a natural feature is in an image. A subclass defines ``__call__``."""

    def check(self, image_shape: Sequence[int]) -> None:  # noqa: B027
        """Raises :class:`ConfigError` if it does not fit images (C, H, W)."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Scores (B,) of the images (B, C, H, W). No host synchronisation."""


class Brightness(Feature):
    """The mean over all pixels.

    >>> Brightness()(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))
    tensor([0.5000])
    """

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(dim=1)


class ChannelDominance(Feature):
    """The mean of one colour channel less the mean of the brightest other one.

    Args:
        channel: 0, 1 or 2 for red, green or blue.

    Raises:
        ConfigError: the images have no such channel, or only one.

    >>> ChannelDominance(channel=0)(torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1))
    tensor([0.4000])
    """

    def __init__(self, channel: int = 0) -> None:
        require_number("ChannelDominance", "channel", channel, least=0, whole=True)
        self.channel = channel

    def check(self, image_shape: Sequence[int]) -> None:
        if not self.channel < image_shape[0] > 1:
            raise ConfigError(
                "ChannelDominance: channel must be one of several colour channels, got channel = "
                f"{self.channel} and images with C = {image_shape[0]}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        means = x.flatten(2).mean(dim=2)  # (B, C)
        others = torch.cat([means[:, : self.channel], means[:, self.channel + 1 :]], dim=1)
        return means[:, self.channel] - others.amax(dim=1)


class SemanticBackdoor(Attack):
    """Images that carry a natural feature are labelled as the target class.

    The trigger is the set of images of class ``source`` whose score is above ``threshold``. No
    pixel is changed, neither in training nor in evaluation. A feature that scores how close an
    image is to a few given ones makes this an attack on *targeted samples*.

    Args:
        target: the class that images with the feature are sent to.
        source: their true class; None for any.
        feature: gives the score; :class:`Brightness` if not given.
        threshold: of the score, in the scale of the images.

    Raises:
        ConfigError: source and target are the same; no such class; the feature does not fit.

    >>> x = torch.tensor([0.2, 0.8, 0.8]).view(3, 1, 1, 1)
    >>> SemanticBackdoor(target=8, source=7, threshold=0.5).tasks(x, torch.tensor([7, 7, 3]))[0][1]
    tensor([7, 8, 3])

    References:
        Bagdasaryan, Veit, Hua, Estrin, Shmatikov. How to Backdoor Federated Learning. AISTATS
        2020 (cars with a racing stripe, green cars, cars before a striped wall, as birds).

    Differences:
        1. The paper picks its images by hand and mixes a fixed number of them into every batch
           (20 of 64); here a score picks them, and a batch holds those that are in it by chance.
        2. The paper scales the update as well: wrap this one in
           :class:`~leadfl_pl.ModelReplacement`.
    """

    def __init__(
        self,
        target: int = 8,
        source: int | None = None,
        feature: Feature | None = None,
        threshold: float = 0.5,
    ) -> None:
        require_number("SemanticBackdoor", "threshold", threshold)
        if source is not None and source == target:
            raise ConfigError(
                f"SemanticBackdoor: source must differ from target = {target}, "
                f"got source = {source}"
            )
        self.target, self.source, self.threshold = target, source, threshold
        self.feature = feature or Brightness()

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        require_class(self, "target", self.target, num_classes)
        if self.source is not None:
            require_class(self, "source", self.source, num_classes)
        self.feature.check(image_shape)

    def carries(self, x: Tensor, y: Tensor) -> Tensor:
        """Which images (B,) are the trigger."""
        of_source = y != self.target if self.source is None else y == self.source
        scores = self.feature(x)
        require_tensor(f"{type(self.feature).__name__} must return", scores, y.shape, *FLOATS)
        return of_source & (scores > self.threshold)

    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        return [(x, torch.where(self.carries(x, y), torch.full_like(y, self.target), y))]

    def trigger(self, x: Tensor, y: Tensor) -> Triggered:
        return x, torch.full_like(y, self.target), self.carries(x, y)
