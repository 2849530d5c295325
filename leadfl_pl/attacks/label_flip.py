"""Label flipping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, Task, Triggered, require_class
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.values import takes_stacks


class LabelFlip(Attack):
    r"""Training on wrong labels; the images stay as they are.

    With ``source`` and ``target``, images of the source class are labelled as the target class.
    Without, all labels are mirrored, :math:`l \mapsto C - 1 - l`.

    What counts as the backdoor accuracy is the share of untouched test images that get the wrong
    label the attacker wants: of the source class, or of all classes that are not mirrored onto
    themselves.

    Args:
        source, target: the two classes; both or none.
        num_classes: C; it must be the data's.

    Raises:
        ConfigError: one class is given without the other, or both are the same; no such class;
            ``num_classes`` is not the data's.

    >>> LabelFlip().flip(torch.tensor([0, 3, 9]))
    tensor([9, 6, 0])
    >>> LabelFlip(source=3, target=7).flip(torch.tensor([0, 3, 9]))
    tensor([0, 7, 9])

    References:
        Tolpegin, Truex, Gursoy, Liu. Data Poisoning Attacks against Federated Learning Systems.
        ESORICS 2020 (source to target). Fang, Cao, Jia, Gong. Local Model Poisoning Attacks to
        Byzantine-Robust Federated Learning. USENIX Security 2020 (mirrored).
    """

    def __init__(
        self, source: int | None = None, target: int | None = None, num_classes: int = 10
    ) -> None:
        if (source is None) != (target is None) or (source is not None and source == target):
            raise ConfigError(
                "LabelFlip: source and target must be two classes, or both null, "
                f"got source = {source} and target = {target}"
            )
        require_number("LabelFlip", "num_classes", num_classes, least=2, whole=True)
        self.source, self.target, self.num_classes = source, target, num_classes

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        if self.num_classes != num_classes:
            raise ConfigError(
                f"LabelFlip: num_classes must be {num_classes}, as the data has, "
                f"got num_classes = {self.num_classes}"
            )
        for key, value in (("source", self.source), ("target", self.target)):
            if value is not None:
                require_class(self, key, value, num_classes)

    def flip(self, y: Tensor) -> Tensor:
        """The labels (B,) that a malicious client trains on."""
        if self.source is None or self.target is None:
            return self.num_classes - 1 - y
        return torch.where(y == self.source, torch.full_like(y, self.target), y)

    @takes_stacks
    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        return [(x, self.flip(y))]

    @takes_stacks
    def trigger(self, x: Tensor, y: Tensor) -> Triggered:
        if self.source is None or self.target is None:
            wanted = self.flip(y)
            return x, wanted, wanted != y
        return x, torch.full_like(y, self.target), y == self.source
