"""Inner product manipulation."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, CraftedUpdates
from leadfl_pl.core.errors import require_number


class IPM(CraftedUpdates):
    r"""Attackers send :math:`-\epsilon \mu`, against the mean :math:`\mu` of the honest updates.

    A small epsilon slips past rules that measure distances; one above (n - m)/m turns the plain
    mean of n updates around.

    Args:
        attack, omniscient: see :class:`~leadfl_pl.attacks.base.CraftedUpdates`.
        epsilon: the factor, >= 0; 0 sends nothing.

    Raises:
        ConfigError: epsilon is out of range; ``attack`` corrupts updates.

    >>> updates, malicious = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1]).bool()
    >>> IPM(epsilon=0.5).corrupt(updates, malicious, torch.Generator())[2]
    tensor([-1.])

    References:
        Xie, Koyejo, Gupta. Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
        Manipulation. UAI 2019.
    """

    def __init__(
        self, attack: Attack | None = None, epsilon: float = 0.5, omniscient: bool = True
    ) -> None:
        super().__init__(attack, omniscient)
        require_number("IPM", "epsilon", epsilon, least=0)
        self.epsilon = epsilon

    def craft(
        self, reference: Tensor, n: int, num_malicious: int, generator: torch.Generator
    ) -> Tensor:
        return -self.epsilon * reference.mean(dim=0)
