"""The edge-case backdoor: images from the tail of the input distribution are the trigger."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from leadfl_pl.attacks.base import Attack, Task, Triggered, require_class
from leadfl_pl.attacks.data_poisoning import image_hash
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.rng import MAX_SEED, isolated_rng
from leadfl_pl.core.values import takes_stacks


class Tail(NamedTuple):
    """The tail of a class: the images at least ``radius`` away from its mean."""

    images: Tensor  # (m, C, H, W) known ones, the farthest first
    mean: Tensor  # (C, H, W) of the class
    radius: Tensor  # () L2 distance

    def to(self, like: Tensor) -> Tail:
        """The same on the device of ``like``; images in its dtype, distances as exact as before."""
        return Tail(self.images.to(like), self.mean.to(like.device), self.radius.to(like.device))


def distance(x: Tensor, mean: Tensor) -> Tensor:
    """L2 distance (B,) of each image (B, C, H, W) from one (C, H, W), in the dtype of ``mean``."""
    away: Tensor = torch.linalg.vector_norm((x.to(mean.dtype) - mean).flatten(1), dim=1)
    return away


def tail_of(images: Tensor, share: float) -> Tail:
    """The ``share`` of the images (N, C, H, W) of a class that lie farthest from their mean.

    >>> tail_of(torch.tensor([0.0, 1.0, 1.0, 2.5]).view(4, 1, 1, 1), share=0.5).images.flatten()
    tensor([2.5000, 0.0000])
    """
    mean = images.mean(dim=0)
    away, order = distance(images, mean).sort(descending=True, stable=True)
    count = max(1, ceil(round(share * len(images), 9)))  # 0.28 * 25 is a little more than 7
    return Tail(images[order[:count]], mean, away[count - 1])


class EdgeCaseBackdoor(Attack):
    r"""Images of the tail of class ``source`` are mixed into the data as the target class.

    The tail are the images x with :math:`\lVert x - \mu\rVert_2 \ge r`, where :math:`\mu` is the
    mean of the class in ``data`` and r is chosen so that ``tail`` of its images are in it: those
    which an isotropic Gaussian, fitted to the class, finds least likely. In each malicious client's
    data every image is, with probability ``rate``, replaced by one of them; no pixel is changed. An
    image is replaced in every epoch and round, and by the same one, or never.

    Evaluation counts the test images of class ``source`` that are in the tail: none of them has
    been trained on.

    Args:
        data: its training images (N, C, H, W), in the scale of the federation's, are known to the
            attackers. Every process prepares it.
        target: the class that the tail is sent to.
        source: the class whose tail it is.
        tail: share of that class, in (0, 1].
        rate: in (0, 1].
        seed: which images are replaced, and by which.

    Raises:
        ConfigError: a setting out of range; source and target are the same; no such class; ``data``
            has images of another shape, or none of class ``source``.

    References:
        Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos. Attack of the
        Tails: Yes, You Really Can Backdoor Federated Learning. NeurIPS 2020 (black-box attack).

    Differences:
        1. The paper gathers edge cases from other data sets (airliners of one company, digits of
           another country), none of which clients have; here they are the training images of a
           class that lie farthest from its mean, which need no download, and of which honest
           clients have some with the right label.
        2. The paper's attacker adds edge cases to its data; here they take the place of images, so
           that a client has as much data as before.
        3. Projected training and model replacement, its other two attacks, go around this one:
           :class:`~leadfl_pl.PGD`, :class:`~leadfl_pl.ModelReplacement`.
    """

    def __init__(
        self,
        data: LightningDataModule,
        target: int = 8,
        source: int = 7,
        tail: float = 0.1,
        rate: float = 0.5,
        seed: int = 0,
    ) -> None:
        for key, value in (("tail", tail), ("rate", rate)):
            require_number("EdgeCaseBackdoor", key, value, above=0, most=1)
        require_number("EdgeCaseBackdoor", "seed", seed, least=0, most=MAX_SEED, whole=True)
        if source == target:
            raise ConfigError(
                f"EdgeCaseBackdoor: source must differ from target = {target}, "
                f"got source = {source}"
            )
        self.data, self.target, self.source = data, target, source
        self.tail, self.rate, self.seed = tail, rate, seed
        self._known: Tail | None = None

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        require_class(self, "target", self.target, num_classes)
        require_class(self, "source", self.source, num_classes)
        known = self._tail(torch.empty(0))
        if known.mean.shape != torch.Size(image_shape):
            raise ConfigError(
                f"EdgeCaseBackdoor: data must have images of shape {tuple(image_shape)}, "
                f"got data = {type(self.data).__name__} with {tuple(known.mean.shape)}"
            )

    def _tail(self, like: Tensor) -> Tail:
        """The tail of the source class, read once, on the device and in the dtype of ``like``."""
        if self._known is None:
            with isolated_rng(0):  # training batches are shuffled
                self.data.prepare_data()  # no Trainer does it for these
                self.data.setup("fit")
                batches = [x[y == self.source] for x, y in self.data.train_dataloader()]
            if not sum(map(len, batches)):
                raise ConfigError(
                    f"EdgeCaseBackdoor: data must have images of class source = {self.source}, "
                    f"got data = {type(self.data).__name__} with none"
                )
            self._known = tail_of(torch.cat(batches), self.tail)
        if (self._known.images.device, self._known.images.dtype) != (like.device, like.dtype):
            self._known = self._known.to(like)  # once, not in every local step
        return self._known

    @takes_stacks
    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        edge_cases, hashes = self._tail(x).images, image_hash(x, self.seed)
        replaced = hashes < self.rate * 2**31
        images = edge_cases[hashes % len(edge_cases)]
        return [
            (torch.where(replaced.view(-1, 1, 1, 1), images, x),
             torch.where(replaced, self.target, y))
        ]  # fmt: skip

    @takes_stacks
    def trigger(self, x: Tensor, y: Tensor) -> Triggered:
        known = self._tail(x)
        is_edge_case = distance(x, known.mean) >= known.radius
        return x, torch.full_like(y, self.target), (y == self.source) & is_edge_case
