"""Backdoors that are trained on beside the clean task; the pixel pattern."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, Task, require_class
from leadfl_pl.core.errors import ConfigError, require_choice, require_number, require_numbers
from leadfl_pl.core.values import takes_stacks

Pattern = Sequence[Sequence[float | None]]  # rows of 1 (set), 0 (cleared), None (as it is)
NINE_PIXELS = (
    (1, 0, 1),
    (None, 1, None),
    (None, None, 0),
    (None, 1, None),
    (1, 0, 1),
)
LOSS_FLOOR = 1e-5  # as in the released solver; a loss that has underflowed to 0 still divides
REFERENCE_SIZE = 28  # the image side that ``position`` is given for


def mgda_weight(
    first: list[Tensor], second: list[Tensor], first_loss: Tensor, second_loss: Tensor
) -> Tensor:
    r"""Weight () of the first of two tasks in the min-norm point of their normalised gradients.

    With :math:`v_k = \nabla L_k / (\min(L_k, 10) + 10^{-5})`, the weight is
    :math:`\gamma = (v_2\cdot v_2 - v_1\cdot v_2) / (v_1\cdot v_1 + v_2\cdot v_2 -
    2 v_1\cdot v_2)`, 0.999 where v_1 is the shorter point of the segment already and 0.001 where
    v_2 is. No host synchronisation. With losses (m,) and gradients (m, ...), the weights (m,) of
    m clients.

    >>> g1, g2 = [torch.tensor([2.0, 0.0])], [torch.tensor([0.0, 1.0])]
    >>> mgda_weight(g1, g2, torch.tensor(1.0), torch.tensor(1.0))
    tensor(0.2000)

    References:
        Sener, Koltun. Multi-Task Learning as Multi-Objective Optimization. NeurIPS 2018.
        Bagdasaryan, Shmatikov. Blind Backdoors in Deep Learning Models. USENIX Security 2021
        (normalisation by the loss).
    """
    a, b = first_loss.clamp_max(10.0) + LOSS_FLOOR, second_loss.clamp_max(10.0) + LOSS_FLOOR
    dot = _dots if first_loss.ndim else _dot
    v11 = dot(first, first) / (a * a)
    v22 = dot(second, second) / (b * b)
    v12 = dot(first, second) / (a * b)
    inner = (v22 - v12) / (v11 + v22 - 2 * v12)
    return inner.masked_fill(v12 >= v22, 0.001).masked_fill(v12 >= v11, 0.999)


def _dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    pairs = zip(first, second, strict=True)
    return torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in pairs]).sum()


def _dots(first: list[Tensor], second: list[Tensor]) -> Tensor:
    pairs = zip(first, second, strict=True)
    kind = first[0].device.type
    mixes = torch.amp.is_autocast_available(kind)  # mixed precision would make it bfloat16
    with torch.autocast(kind, enabled=False) if mixes else nullcontext():
        dots = [torch.linalg.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1)) for a, b in pairs]
    return torch.stack(dots).sum(dim=0)


class Backdoor(Attack):
    """Base of the attacks whose trigger turns any image into the target class.

    Args:
        target, balance, backdoor_weight: see :class:`~leadfl_pl.PatternBackdoor`.
    """

    def __init__(
        self,
        target: int = 8,
        balance: Literal["mgda", "fixed"] = "mgda",
        backdoor_weight: float = 0.5,
    ) -> None:
        name = type(self).__name__
        require_choice(name, "balance", balance, ("mgda", "fixed"))
        require_number(name, "backdoor_weight", backdoor_weight, above=0, most=1)
        self.target = target
        self.balance_rule = balance
        self.backdoor_weight = backdoor_weight

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        require_class(self, "target", self.target, num_classes)

    def stamp(self, x: Tensor) -> Tensor:
        """A copy of the images (B, C, H, W) with the trigger.

        :func:`~leadfl_pl.takes_stacks` marks one that treats each image by itself.
        """
        raise NotImplementedError(f"{type(self).__name__} must define stamp()")

    @takes_stacks
    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        return [(self.stamp(x), torch.full_like(y, self.target)), (x, y)]

    @takes_stacks
    def balance(self, losses: Tensor, gradients: list[list[Tensor]]) -> Tensor:
        if self.balance_rule == "fixed":
            weights = (self.backdoor_weight, 1 - self.backdoor_weight)
            return torch.stack([torch.full_like(losses[0], w) for w in weights])
        share = mgda_weight(gradients[0], gradients[1], losses[0], losses[1])
        return torch.stack([share, 1 - share])

    def trigger(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.stamp(x), torch.full_like(y, self.target), y != self.target


class PatternBackdoor(Backdoor):
    r"""A fixed pixel pattern that turns any image into the target class.

    A malicious client minimises :math:`a L_\text{backdoor} + (1 - a) L_\text{clean}` over the same
    batch, triggered and clean.

    Args:
        target: the class that triggered images are sent to.
        balance: ``"mgda"`` finds a by the two-task min-norm rule at every step, ``"fixed"`` takes
            ``backdoor_weight``.
        backdoor_weight: a of the fixed balance, in (0, 1].
        position: row and column of the pattern's top-left corner on a 28 x 28 image. On other
            sizes it moves in proportion, rounded, and is pushed inside if the pattern would stick
            out; the pattern keeps its pixels. 8 x 8 images get row 1, column 5.
        high, low: values of the set and the cleared pixels, in the scale of the images (1 and 0:
            raw pixels in [0, 1]).
        pattern: rows of 1 (set), 0 (cleared) and None (leave the image as it is).

    Raises:
        ConfigError: a setting out of range; the pattern does not fit the image; no such class.

    References:
        Zhu, Roos, Chen. LeadFL. ICML 2023 (9-pixel pattern); Bagdasaryan, Shmatikov 2021.

    Differences:
        1. The released code normalises the pattern with MNIST's constants but not the images:
           ``high=2.8214867115, low=-0.4242129624`` on raw images.
    """

    def __init__(
        self,
        target: int = 8,
        balance: Literal["mgda", "fixed"] = "mgda",
        backdoor_weight: float = 0.5,
        position: tuple[int, int] = (3, 23),
        high: float = 1.0,
        low: float = 0.0,
        pattern: Pattern = NINE_PIXELS,
    ) -> None:
        super().__init__(target, balance, backdoor_weight)
        name = type(self).__name__
        require_numbers(name, "position", position, least=0, length=2)
        for key, value in (("high", high), ("low", low)):
            require_number(name, key, value)
        self.position = position
        self.high, self.low = high, low
        self.pattern = tuple(tuple(row) for row in pattern or ())
        entries = {entry for row in self.pattern for entry in row}
        one_length = len({len(row) for row in self.pattern}) == 1
        if not one_length or not entries <= {0, 1, None} or entries <= {None}:
            raise ConfigError(
                f"{name}: pattern must be rows of one length of 1 (set), 0 (cleared) and null (as "
                f"it is), not all of them null, got pattern = {[list(row) for row in self.pattern]}"
            )
        # (h, w) each
        self._mask = torch.tensor([[entry is not None for entry in row] for row in self.pattern])
        is_set = torch.tensor([[entry == 1 for entry in row] for row in self.pattern])
        self._values = torch.where(is_set, high, low)

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        height, width = image_shape[-2:]
        rows, columns = self._mask.shape
        if rows > height or columns > width:
            raise ConfigError(
                f"{type(self).__name__}: pattern must fit the image, {height} x {width} pixels, "
                f"got a pattern of {rows} x {columns}"
            )
        super().check(image_shape, num_classes)

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Row and column of the pattern's top-left corner on an image of this size."""
        rows, columns = self._mask.shape
        row = round(self.position[0] * height / REFERENCE_SIZE)
        column = round(self.position[1] * width / REFERENCE_SIZE)
        return min(row, height - rows), min(column, width - columns)

    @takes_stacks
    def stamp(self, x: Tensor) -> Tensor:
        """A copy of the images (B, C, H, W) with the pattern on every channel."""
        row, column = self.corner(*x.shape[-2:])
        rows, columns = self._mask.shape
        if self._mask.device != x.device:  # once, not in every local step
            self._mask, self._values = self._mask.to(x.device), self._values.to(x.device)
        mask, values = self._mask, self._values.to(x.dtype)
        stamped = x.clone()
        window = stamped[..., row : row + rows, column : column + columns]
        window.copy_(torch.where(mask, values, window))
        return stamped
