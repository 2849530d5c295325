"""The seam of the attacks: on a malicious client's data, and on the updates of a round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Task = tuple[Tensor, Tensor]  # images (B, C, H, W) in the scale the data module gives, labels (B,)


class Attack:
    """What the malicious clients do. The base class attacks nothing.

    A malicious client trains on one or several *tasks* made of its own batch; their gradients are
    summed with :meth:`balance`. An attack on updates overrides :meth:`corrupt`. An attack that
    plants a backdoor overrides :meth:`trigger`, which evaluation uses.
    """

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        """Raises :class:`~leadfl_pl.types.ConfigError` if it does not fit images (C, H, W)."""

    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        """The batches that a malicious client takes its gradient from, given its own batch."""
        return [(x, y)]

    def balance(self, losses: Tensor, gradients: list[list[Tensor]]) -> Tensor:
        """Weights (T,) of the T tasks; ``gradients[k]`` are those of task k, ``losses`` is (T,)."""
        return torch.ones_like(losses)

    def corrupt(self, updates: Tensor, malicious: Tensor) -> Tensor:
        """The updates (n, d) that the server receives; ``malicious`` is a mask (n,)."""
        return updates

    def trigger(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Triggered images, the labels the attacker wants, and which of them count (B,).

        None for an attack without a backdoor.
        """
        return None
