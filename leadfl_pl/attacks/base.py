"""The seam of the attacks: on a malicious client's data, and on the updates of a round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leadfl_pl.types import AttackerView

Task = tuple[Tensor, Tensor]  # images (B, C, H, W) in the scale the data module gives, labels (B,)
Triggered = tuple[Tensor, Tensor, Tensor]  # images, labels the attacker wants, which count (B,)


class Attack:
    """What the malicious clients do. The base class attacks nothing.

    A malicious client trains on one or several *tasks* made of its own batch; their gradients are
    summed with :meth:`balance`, and :meth:`project` has the last word on the sum. What differs
    between the malicious clients, or from round to round, is decided by :meth:`local`. An attack
    on updates overrides :meth:`corrupt`. An attack that plants a backdoor overrides
    :meth:`trigger`, which evaluation uses.
    """

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        """Raises :class:`~leadfl_pl.types.ConfigError` if it does not fit images (C, H, W)."""

    def local(self, view: AttackerView) -> Attack:
        """The attack as one malicious client carries it out in one round."""
        return self

    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        """The batches that a malicious client takes its gradient from, given its own batch."""
        return [(x, y)]

    def balance(self, losses: Tensor, gradients: list[list[Tensor]]) -> Tensor:
        """Weights (T,) of the T tasks; ``gradients[k]`` are those of task k, ``losses`` is (T,)."""
        return torch.ones_like(losses)

    def project(self, gradients: list[Tensor]) -> list[Tensor]:
        """The gradient of the local step, given the weighted sum over the tasks."""
        return gradients

    def corrupt(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Tensor:
        """The updates (n, d) that the server receives; ``malicious`` is a mask (n,), not empty.

        The attackers of a round know each other's updates. Which of the honest ones they look at
        is for the attack to say. All ``updates`` are finite.
        """
        return updates

    def trigger(self, x: Tensor, y: Tensor) -> Triggered | None:
        """Triggered images, the labels the attacker wants, and which of them count (B,).

        None for an attack without a backdoor.
        """
        return None


class AttackWrapper(Attack):
    """Another attack with something added; everything that is not overridden is the other's.

    Args:
        attack: what the malicious clients do besides; honest local training if not given.
    """

    def __init__(self, attack: Attack | None = None) -> None:
        self.attack = attack or Attack()

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        self.attack.check(image_shape, num_classes)

    def local(self, view: AttackerView) -> Attack:
        return self.attack.local(view)

    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        return self.attack.tasks(x, y)

    def balance(self, losses: Tensor, gradients: list[list[Tensor]]) -> Tensor:
        return self.attack.balance(losses, gradients)

    def project(self, gradients: list[Tensor]) -> list[Tensor]:
        return self.attack.project(gradients)

    def corrupt(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Tensor:
        return self.attack.corrupt(updates, malicious, generator)

    def trigger(self, x: Tensor, y: Tensor) -> Triggered | None:
        return self.attack.trigger(x, y)


def reference_updates(updates: Tensor, malicious: Tensor, omniscient: bool) -> Tensor:
    """The updates (m, d) from which attackers learn what honest ones look like.

    The honest ones for an omniscient attacker; the attackers' own, as their local training gave
    them, for one who is not, and in a round without honest clients.
    """
    honest = ~malicious
    return updates[honest if omniscient and bool(honest.any()) else malicious]
