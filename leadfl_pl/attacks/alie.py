"""A Little Is Enough: a shift that hides in the spread of the honest updates."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, CraftedUpdates
from leadfl_pl.core.errors import require_number


def largest_z(n: int, num_malicious: int) -> float:
    r"""The shift, in standard deviations, up to which a majority is expected to be won over.

    :math:`z = \Phi^{-1}\left(\frac{n - m - s}{n - m}\right)` with :math:`s = \lfloor n/2 + 1
    \rfloor - m` honest supporters for m attackers among n clients. The probability is kept half a
    client away from 0 and 1, so that z is finite when the attackers have the majority already.

    >>> round(largest_z(50, 24), 4)
    1.4261
    """
    honest = max(1, n - num_malicious)
    supporters = n // 2 + 1 - num_malicious
    share = (honest - supporters) / honest
    margin = 0.5 / honest
    return NormalDist().inv_cdf(min(max(share, margin), 1 - margin))


class ALIE(CraftedUpdates):
    r"""Attackers send :math:`\mu_j - z \sigma_j` in each coordinate j.

    :math:`\mu` and :math:`\sigma` are the mean and the (population) standard deviation of the
    honest updates, or of those of the attackers.

    Args:
        attack, omniscient: see :class:`~leadfl_pl.attacks.base.CraftedUpdates`.
        z: the shift; None for :func:`largest_z` of each round.

    Raises:
        ConfigError: z is out of range; ``attack`` corrupts updates.

    >>> updates, malicious = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1]).bool()
    >>> ALIE(z=1.5).corrupt(updates, malicious, torch.Generator())[2]
    tensor([0.5000])

    References:
        Baruch, Baruch, Goldberg. A Little Is Enough: Circumventing Defenses for Distributed
        Learning. NeurIPS 2019.

    Differences:
        1. Sign: the paper's algorithm adds z sigma, any direction being as good; its authors'
           code subtracts it, and so does this.
        2. The paper's attackers are not omniscient: ``omniscient=False``. The standard deviation
           is the population one, as in the authors' code; the paper does not say.
        3. The authors' experiments fix z = 1.5; the default is the paper's formula. With few
           attackers it is negative (z = -0.14 for 1 of 10), which shifts the other way.
        4. Where the formula has no finite value (attackers in the majority, or one honest
           client), half a client decides: z = 1.15 for 6 of 10.
    """

    def __init__(
        self, attack: Attack | None = None, z: float | None = None, omniscient: bool = True
    ) -> None:
        super().__init__(attack, omniscient)
        if z is not None:
            require_number("ALIE", "z", z)
        self.z = z

    def craft(
        self, reference: Tensor, n: int, num_malicious: int, generator: torch.Generator
    ) -> Tensor:
        z = largest_z(n, num_malicious) if self.z is None else self.z
        deviation, mean = torch.std_mean(reference, dim=0, correction=0)
        return mean - z * deviation
