"""The distributed backdoor: every attacker trains on a quarter of the trigger."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch

from leadfl_pl.attacks.backdoor import PatternBackdoor
from leadfl_pl.attacks.base import Attack
from leadfl_pl.core.errors import ConfigError, require_numbers
from leadfl_pl.core.values import AttackerView

LARGEST_SIDE = 1000  # pixels; a mask of the whole trigger is kept
NUM_BARS = 4


class DBA(PatternBackdoor):
    """A trigger of four bars, one of them for each attacker; only the test images carry all four.

    The bars stand at the corners of a rectangle: top left, top right, bottom left, bottom right.
    Malicious client j trains with bar j mod 4.

    Args:
        target, balance, backdoor_weight: see :class:`~leadfl_pl.PatternBackdoor`.
        size: rows and columns of a bar.
        gap: rows and columns between two bars.
        shift: row and column of the top-left bar, in pixels of any image: nothing is rescaled.
        high: value of the set pixels, in the scale of the images (1: raw pixels in [0, 1]).

    Raises:
        ConfigError: a setting out of range; the bars do not fit the image; no such class.

    >>> blank = torch.zeros(1, 1, 28, 28)
    >>> [int(DBA().bar(j).stamp(blank).sum()) for j in range(4)], int(DBA().stamp(blank).sum())
    ([4, 4, 4, 4], 16)

    References:
        Xie, Huang, Chen, Li. DBA: Distributed Backdoor Attacks against Federated Learning.
        ICLR 2020.

    Differences:
        1. The defaults are the geometry that the paper and its code use on MNIST (28 x 28): bars
           of 1 x 4 pixels, gap 2, at rows 0 and 3, columns 0 .. 3 and 6 .. 9. The target is
           class 8, as in LeadFL's experiments; the paper's is 2.
        2. The paper poisons a fixed share of each batch (20 of 64 images on MNIST); here the
           whole batch is used twice, triggered and clean, as :class:`~leadfl_pl.PatternBackdoor`
           does.
        3. The single-shot attack of the paper scales the update by 100: wrap this one in
           :class:`~leadfl_pl.ModelReplacement`.
        4. The paper has four attackers; with more, several share a bar.
    """

    def __init__(
        self,
        target: int = 8,
        balance: Literal["mgda", "fixed"] = "mgda",
        backdoor_weight: float = 0.5,
        size: tuple[int, int] = (1, 4),
        gap: tuple[int, int] = (2, 2),
        shift: tuple[int, int] = (0, 0),
        high: float = 1.0,
    ) -> None:
        for key, value, least in (("size", size, 1), ("gap", gap, 0), ("shift", shift, 0)):
            require_numbers("DBA", key, value, least=least, most=LARGEST_SIDE, length=2)
        self.size, self.gap, self.shift = size, gap, shift
        mask = torch.zeros(2 * size[0] + gap[0], 2 * size[1] + gap[1], dtype=torch.bool)
        for j in range(NUM_BARS):
            mask[self._window(j)] = True
        pattern = [[1 if is_set else None for is_set in row] for row in mask.tolist()]
        super().__init__(target, balance, backdoor_weight, high=high, pattern=pattern)

    def _window(self, j: int) -> tuple[slice, slice]:
        """Rows and columns of bar j in the trigger."""
        row, column = divmod(j % NUM_BARS, 2)
        top, left = row * (self.size[0] + self.gap[0]), column * (self.size[1] + self.gap[1])
        return slice(top, top + self.size[0]), slice(left, left + self.size[1])

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        height, width = image_shape[-2:]
        rows, columns = (a + b for a, b in zip(self.shift, self._mask.shape, strict=True))
        if rows > height or columns > width:
            raise ConfigError(
                f"DBA: size = {list(self.size)}, gap = {list(self.gap)} and shift = "
                f"{list(self.shift)} must fit the image, {height} x {width} pixels, "
                f"got a trigger that ends at {rows} x {columns}"
            )
        super().check(image_shape, num_classes)

    def corner(self, height: int, width: int) -> tuple[int, int]:
        return self.shift

    def bar(self, j: int) -> DBA:
        """The same attack with bar j mod 4 as its whole trigger."""
        local = copy.copy(self)
        local._mask = torch.zeros_like(self._mask)
        local._mask[self._window(j)] = True
        return local

    def local(self, view: AttackerView) -> Attack:
        return self.bar(view.attacker)
