"""Min-Max and Min-Sum: as far from the honest mean as the spread of the honest updates allows.

Two attacks of one paper that share all but one inequality.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, CraftedUpdates
from leadfl_pl.core.distances import squared_distances
from leadfl_pl.core.errors import require_choice

Perturbation = Literal["std", "sign", "unit"]


def perturb(reference: Tensor, perturbation: Perturbation) -> tuple[Tensor, Tensor]:
    """Mean (d,) of the rows of (r, d), and the unit vector (d,) to leave it by.

    ``"std"``: against the coordinates' standard deviations; ``"sign"``: against the signs of the
    mean; ``"unit"``: against the mean. A vector without a length stays zero.
    """
    deviation, mean = torch.std_mean(reference, dim=0, correction=0)
    direction = {"std": deviation, "sign": mean.sign(), "unit": mean}[perturbation]
    return mean, -torch.nn.functional.normalize(direction, dim=0, eps=1e-30)


class _MinDistance(CraftedUpdates):
    """Attackers send mu + gamma p with the largest gamma that an inequality admits."""

    def __init__(
        self,
        attack: Attack | None = None,
        perturbation: Perturbation = "std",
        omniscient: bool = True,
    ) -> None:
        super().__init__(attack, omniscient)
        require_choice(type(self).__name__, "perturbation", perturbation, ("std", "sign", "unit"))
        self.perturbation = perturbation

    def gamma(self, along: Tensor, offsets: Tensor, distances: Tensor) -> Tensor:
        """The largest gamma (), in unit vectors.

        ``along`` (r,) is p (mu - u_i), ``offsets`` (r,) is |mu - u_i|^2, ``distances`` (r, r) are
        the squared ones between the u_i.
        """
        raise NotImplementedError(f"{type(self).__name__} must define gamma()")

    def craft(
        self, reference: Tensor, n: int, num_malicious: int, generator: torch.Generator
    ) -> Tensor:
        mean, direction = perturb(reference, self.perturbation)
        offset = mean - reference
        along = (offset * direction).sum(dim=1, dtype=torch.float64)
        offsets = offset.square().sum(dim=1, dtype=torch.float64)
        gamma = self.gamma(along, offsets, squared_distances(reference))
        return mean + gamma.to(mean.dtype) * direction


class MinMax(_MinDistance):
    r"""Attackers send :math:`\mu + \gamma p`, no further from any honest update than they are.

    The largest gamma with :math:`\max_i \|\mu + \gamma p - u_i\| \le \max_{i,j} \|u_i - u_j\|`,
    for the honest updates :math:`u_i` (or those of the attackers) with mean :math:`\mu`.

    Args:
        attack, omniscient: see :class:`~leadfl_pl.attacks.base.CraftedUpdates`.
        perturbation: p, minus the standard deviations of the coordinates (``"std"``), minus the
            signs of mu (``"sign"``) or minus mu (``"unit"``), each divided by its length.

    Raises:
        ConfigError: no such perturbation; ``attack`` corrupts updates.

    >>> updates, malicious = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1]).bool()
    >>> MinMax().corrupt(updates, malicious, torch.Generator())[2]  # 3 - 1: as far as they are
    tensor([1.])

    References:
        Shejwalkar, Houmansadr. Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
        Defenses for Federated Learning. NDSS 2021.

    Differences:
        1. The paper halves its steps in the search for gamma, from 10 (so it never passes 20)
           down to 1e-5; here the quadratic inequality is solved.
    """

    def gamma(self, along: Tensor, offsets: Tensor, distances: Tensor) -> Tensor:
        slack = (distances.max() - offsets).clamp_min(0.0)  # only rounding makes it negative
        return ((along.square() + slack).sqrt() - along).min()


class MinSum(_MinDistance):
    r"""Attackers send :math:`\mu + \gamma p`, in sum no further from the honest updates than one.

    The largest gamma with :math:`\sum_i \|\mu + \gamma p - u_i\|^2 \le \max_i \sum_j \|u_i -
    u_j\|^2`, for the honest updates :math:`u_i` (or those of the attackers) with mean :math:`\mu`.

    Args:
        attack, omniscient, perturbation: see :class:`MinMax`.

    Raises:
        ConfigError: no such perturbation; ``attack`` corrupts updates.

    >>> updates, malicious = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1]).bool()
    >>> MinSum().corrupt(updates, malicious, torch.Generator())[2]  # 0 + 4 = 2 (1 + gamma^2)
    tensor([1.])

    References:
        Shejwalkar, Houmansadr. Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
        Defenses for Federated Learning. NDSS 2021.

    Differences:
        1. As for :class:`MinMax`.
        2. The authors' code bounds by the smallest sum over the honest updates, which admits less;
           this is the paper's largest.
    """

    def gamma(self, along: Tensor, offsets: Tensor, distances: Tensor) -> Tensor:
        r = len(along)
        slack = (distances.sum(dim=1).max() - offsets.sum()).clamp_min(0.0) / r
        half = along.mean()
        return (half.square() + slack).sqrt() - half
