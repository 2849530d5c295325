"""The backdoor of a single pixel."""

from __future__ import annotations

from typing import Literal

from leadfl_pl.attacks.backdoor import PatternBackdoor


class OnePixelBackdoor(PatternBackdoor):
    """One set pixel turns any image into the target class.

    Args:
        target, balance, backdoor_weight: see :class:`~leadfl_pl.PatternBackdoor`.
        position: row and column of the pixel on a 28 x 28 image; on other sizes it moves in
            proportion, rounded. 8 x 8 images get row 1, column 7.
        high: value of the pixel, in the scale of the images (1: raw pixels in [0, 1]).

    Raises:
        ConfigError: a setting out of range; no such class.

    >>> import torch
    >>> OnePixelBackdoor().stamp(torch.zeros(1, 1, 28, 28)).nonzero().tolist()
    [[0, 0, 3, 23]]

    References:
        Zhu, Roos, Chen. LeadFL. ICML 2023 (1-pixel pattern); Bagdasaryan, Shmatikov. Blind
        Backdoors in Deep Learning Models. USENIX Security 2021.

    Differences:
        1. The released code's single pixel stands where its 9-pixel pattern starts, row 3 and
           column 23, and is normalised with MNIST's constants while the images are not:
           ``high=2.8214867115`` on raw images.
    """

    def __init__(
        self,
        target: int = 8,
        balance: Literal["mgda", "fixed"] = "mgda",
        backdoor_weight: float = 0.5,
        position: tuple[int, int] = (3, 23),
        high: float = 1.0,
    ) -> None:
        super().__init__(target, balance, backdoor_weight, position, high, pattern=((1.0,),))
