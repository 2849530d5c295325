"""The backdoor that stays as close to the honest mean as honest updates do."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, AttackWrapper
from leadfl_pl.core.errors import require_choice


class WithinHonestSpread(AttackWrapper):
    r"""Attackers project their update on the ball in which the honest ones lie.

    :math:`\delta \leftarrow \mu + \min(1, \rho / \|\delta - \mu\|)(\delta - \mu)`, with the mean
    :math:`\mu` of the honest updates and :math:`\rho` the largest, or mean, distance of an honest
    update from it. The attackers know the honest updates of the round. This is projected descent
    on the attack's loss with *one* projection, at the end of local training: the local steps
    themselves are not constrained. With one honest client the attackers send a copy of its update;
    in a round without any there is nothing to hide among and the update is left as it is.

    Args:
        attack: makes the update.
        radius: rho, ``"max"`` or ``"mean"``.

    Raises:
        ConfigError: no such radius.

    >>> updates, malicious = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0, 0, 1]).bool()
    >>> WithinHonestSpread().corrupt(updates, malicious, torch.Generator())[2]
    tensor([3.])

    References:
        The constraint of Shejwalkar, Houmansadr (NDSS 2021) and the constrain-and-scale of
        Bagdasaryan et al. (AISTATS 2020), applied to a backdoor; not an attack of a paper.
    """

    def __init__(
        self, attack: Attack | None = None, radius: Literal["max", "mean"] = "max"
    ) -> None:
        super().__init__(attack)
        require_choice("WithinHonestSpread", "radius", radius, ("max", "mean"))
        self.radius = radius

    def corrupt(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Tensor:
        sent = self.attack.corrupt(updates, malicious, generator).clone()
        honest = updates[~malicious]
        if not len(honest):
            return sent
        mean = honest.mean(dim=0)
        spread = torch.linalg.vector_norm(honest - mean, dim=1)
        radius = spread.max() if self.radius == "max" else spread.mean()
        offset = sent[malicious] - mean
        length = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
        outside = length > radius
        projected = mean + offset * (radius / torch.where(outside, length, 1.0))
        sent[malicious] = torch.where(outside, projected, sent[malicious])
        return sent
