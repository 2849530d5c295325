"""Model replacement: an update that is scaled to survive the average."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, AttackWrapper
from leadfl_pl.core.errors import require_number


class ModelReplacement(AttackWrapper):
    r"""Attackers send :math:`\gamma \delta` instead of their update :math:`\delta`.

    With gamma = n / m for m attackers among n clients of equal size, the average of the round is
    the attackers' mean update plus 1/n of the sum of the honest ones, which is small once the
    model has converged: the attackers' model replaces the global one.

    Args:
        attack: makes the update.
        gamma: the factor, > 0; None for n / m of each round.

    Raises:
        ConfigError: gamma is out of range.

    >>> updates, malicious = torch.tensor([[1.0], [1.0], [3.0], [1.0]]), torch.tensor([0, 0, 1, 0])
    >>> ModelReplacement().corrupt(updates, malicious.bool(), torch.Generator())
    tensor([[ 1.],
            [ 1.],
            [12.],
            [ 1.]])

    References:
        Bagdasaryan, Veit, Hua, Estrin, Shmatikov. How to Backdoor Federated Learning. AISTATS
        2020 (constrain and scale).

    Differences:
        1. The paper has one attacker and a server step of eta/n over all n participants, so
           gamma = n/eta; here several attackers share the factor, n counts the round's clients,
           and a server learning rate other than 1 is left to ``gamma``.
        2. The constrain part, a loss on the distance to the global model, is left out: see
           :class:`~leadfl_pl.WithinHonestSpread`.
    """

    def __init__(self, attack: Attack | None = None, gamma: float | None = None) -> None:
        super().__init__(attack)
        if gamma is not None:
            require_number("ModelReplacement", "gamma", gamma, above=0)
        self.gamma = gamma

    def corrupt(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Tensor:
        sent = self.attack.corrupt(updates, malicious, generator).clone()
        gamma = len(updates) / int(malicious.sum()) if self.gamma is None else self.gamma
        sent[malicious] *= gamma
        return sent
