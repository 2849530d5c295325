"""The blended backdoor: a faint pattern over the whole image."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from leadfl_pl.attacks.backdoor import Backdoor
from leadfl_pl.core.errors import require_number
from leadfl_pl.core.rng import MAX_SEED, generator
from leadfl_pl.core.values import takes_stacks


@lru_cache
def uniform_noise(seed: int, shape: torch.Size, device: torch.device) -> Tensor:
    """Independent draws (C, H, W) from [0, 1), the same on every device."""
    return torch.rand(shape, generator=generator(seed, "blended")).to(device)


class BlendedBackdoor(Backdoor):
    r"""A random pattern, blended into the whole image, is the trigger.

    :math:`x \leftarrow (1 - \alpha)\, x + \alpha\, k` with a pattern k, (C, H, W), whose pixels are
    drawn once from the uniform distribution on [``low``, ``high``).

    Args:
        target, balance, backdoor_weight: see :class:`~leadfl_pl.PatternBackdoor`.
        alpha: in (0, 1]; 1 puts the pattern in the place of the image.
        high, low: range of the pattern's pixels, in the scale of the images (1 and 0: raw pixels
            in [0, 1]).
        seed: of the pattern, which depends on nothing else but the images' shape.

    Raises:
        ConfigError: a setting out of range; no such class.

    >>> attack = BlendedBackdoor(alpha=0.2, low=0.5, high=0.5)
    >>> attack.stamp(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).flatten()
    tensor([0.1000, 0.9000])

    References:
        Chen, Liu, Li, Lu, Song. Targeted Backdoor Attacks on Deep Learning Systems Using Data
        Poisoning. arXiv:1712.05526, 2017 (blended injection, random pattern).

    Differences:
        1. The paper adds a few blended images to a training set; here a malicious client uses its
           whole batch twice, blended and clean. For a small share of its images, put this into
           :class:`~leadfl_pl.DataPoisoning`.
        2. The paper may test with another alpha than it trains with; here there is one.
    """

    def __init__(
        self,
        target: int = 8,
        balance: Literal["mgda", "fixed"] = "mgda",
        backdoor_weight: float = 0.5,
        alpha: float = 0.2,
        high: float = 1.0,
        low: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(target, balance, backdoor_weight)
        require_number("BlendedBackdoor", "alpha", alpha, above=0, most=1)
        require_number("BlendedBackdoor", "low", low)
        require_number("BlendedBackdoor", "high", high, least=low)
        require_number("BlendedBackdoor", "seed", seed, least=0, most=MAX_SEED, whole=True)
        self.alpha, self.high, self.low, self.seed = alpha, high, low, seed

    @takes_stacks
    def stamp(self, x: Tensor) -> Tensor:
        noise = uniform_noise(self.seed, x.shape[1:], x.device).to(x.dtype)
        return torch.lerp(x, self.low + (self.high - self.low) * noise, self.alpha)
