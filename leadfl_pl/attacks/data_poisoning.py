"""Data poisoning: a small share of a client's images carries trigger and label."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, AttackWrapper, Task, Triggered, overrides
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.rng import MAX_SEED, generator
from leadfl_pl.core.values import takes_stacks

STEPS = 2**12  # of a pixel's scale; finer ones would tell x / 255 of a CPU from that of a GPU


@lru_cache
def multipliers(seed: int, count: int, device: torch.device) -> Tensor:
    """The 64-bit numbers (count,) of :func:`image_hash`."""
    least, most = -(2**63), 2**63 - 1
    return torch.randint(least, most, (count,), generator=generator(seed, "poison")).to(device)


def image_hash(x: Tensor, seed: int = 0) -> Tensor:
    r"""A hash (B,) in 0 .. 2^31 - 1 of each image (B, C, H, W), pairwise independent over seeds.

    With the pixels :math:`p_j`, rounded to steps of 1/4096, and random 64-bit numbers a, it is the
    upper 31 bits of :math:`a_0 + \sum_j a_j p_j \bmod 2^{64}`. Integers add up to the same in any
    order, in any batch and on any device.

    >>> image_hash(torch.tensor([0.0, 0.5, 0.0]).view(3, 1, 1, 1))
    tensor([1521437165,  781390785, 1521437165])

    References:
        Dietzfelbinger. Universal Hashing and k-Wise Independent Random Variables via Integer
        Arithmetic without Primes. STACS 1996.
    """
    pixels = (x.flatten(1) * STEPS).round_().long()  # (B, C H W)
    a = multipliers(seed, pixels.shape[1] + 1, x.device)
    return ((pixels * a[1:]).sum(dim=1) + a[0]) >> 33 & 0x7FFFFFFF


class DataPoisoning(Attack):
    r"""A client trains on its own data, a share of which carries the trigger and its label.

    Nothing else is changed: one gradient a local step, of the cross-entropy over the batch

    .. math::
        \{(x, y) \text{ or, for the images with } h(x) < 2^{31}\, rate,
        \; (\mathrm{trigger}(x), target)\}

    where h is :func:`image_hash`: an image is poisoned in every epoch and round, at every client
    that has it and on every device, or never.

    For clients that are honest but whose data is poisoned, ``defended_attackers`` lets them run the
    defense; configs/federations/low_rate_poison.yaml makes all clients such ones.

    Args:
        attack: has the trigger; nothing else of it is used.
        rate: share of the images that are poisoned, of those which a trigger can change: of a
            backdoor, the ones that are not of the target class. In (0, 1]; it is the probability of
            each image, so a client has more or less.
        seed: which images.

    Raises:
        ConfigError: a setting out of range; ``attack`` has no trigger, corrupts updates, adapts
            its trigger, or is itself around another one.

    References:
        Gu, Dolan-Gavitt, Garg. BadNets: Identifying Vulnerabilities in the Machine Learning Model
        Supply Chain. arXiv:1708.06733, 2017.
        Chen, Liu, Li, Lu, Song. Targeted Backdoor Attacks on Deep Learning Systems Using Data
        Poisoning. arXiv:1712.05526, 2017 (low rates).

    Differences:
        1. BadNets adds poisoned copies of images to a training set; here they take the place of
           the clean ones, so that a client has as much data as before.
    """

    def __init__(self, attack: Attack, rate: float = 0.05, seed: int = 0) -> None:
        require_number("DataPoisoning", "rate", rate, above=0, most=1)
        require_number("DataPoisoning", "seed", seed, least=0, most=MAX_SEED, whole=True)
        name = type(attack).__name__
        if not overrides(attack, "trigger"):
            raise ConfigError(f"DataPoisoning: attack must have a trigger, got attack = {name}")
        unused = any(overrides(attack, method) for method in ("corrupt", "adapt"))
        if isinstance(attack, AttackWrapper) or unused:
            around = isinstance(attack, AttackWrapper)
            hint = f" ({name} can go around DataPoisoning)" if around else ""
            raise ConfigError(
                "DataPoisoning: attack must be a plain attack on data, of which only the trigger "
                f"is used{hint}, got attack = {name}"
            )
        self.attack, self.rate, self.seed = attack, rate, seed

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        self.attack.check(image_shape, num_classes)

    @takes_stacks
    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        triggered = self.attack.trigger(x, y)
        assert triggered is not None  # since it overrides trigger()
        images, wanted, counts = triggered
        poisoned = counts & (image_hash(x, self.seed) < self.rate * 2**31)
        return [
            (torch.where(poisoned.view(-1, 1, 1, 1), images, x), torch.where(poisoned, wanted, y))
        ]

    def trigger(self, x: Tensor, y: Tensor) -> Triggered | None:
        return self.attack.trigger(x, y)
