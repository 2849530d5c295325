"""FedProx: local training that is pulled to the global model of the round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leadfl_pl.core.errors import require_number
from leadfl_pl.core.values import LocalStep, takes_stacks
from leadfl_pl.defenses.base import ClientDefense, clones


class FedProxState(NamedTuple):
    """What FedProx remembers between two local steps."""

    anchor: list[Tensor]  # W_t, the global model of the round
    current: list[Tensor]  # W_i


class FedProx(ClientDefense):
    r"""FedProx: SGD on the local loss plus :math:`\frac\mu2 \lVert W - W_t\rVert^2`.

    With the global model :math:`W_t` of the round, which is also :math:`W_0`, a local step is

    .. math::
        W_{i+1} = W_i - \eta\, g_i - \eta\mu\,(W_i - W_t)

    No defense by intent: the pull is to a global model that may be poisoned, so it keeps a
    backdoor where :class:`~leadfl_pl.Contraction` ends it. It is here as a control.

    Args:
        mu: weight of the proximal term, >= 0; 0 is plain SGD.

    Raises:
        ConfigError: mu < 0.

    Two steps by hand, eta = 0.1 and gradients of 1: W_1 = -0.1, W_2 = -0.2 + 0.1 * 5 * 0.1

    >>> W, defense = torch.zeros(1), FedProx(mu=5.0)
    >>> state = defense.start(["weight"], [W])
    >>> for i in range(2):
    ...     step = LocalStep(
    ...         ["weight"], [W.sub_(0.1)], [], 0.1, i, 2, False, lambda: None, torch.Generator())
    ...     state = defense.after_step(step, state)
    >>> W
    tensor([-0.1500])

    References:
        Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith. Federated Optimization in Heterogeneous
        Networks. MLSys 2020.

    Differences:
        1. With momentum, the proximal term is not part of it. The paper's clients have none.
        2. All clients take all local steps; the paper also lets slow ones stop early.
    """

    idle_first = "round"

    def __init__(self, mu: float = 0.1) -> None:
        require_number("FedProx", "mu", mu, least=0)
        self.mu = mu

    @takes_stacks
    def start(self, names: Sequence[str], params: list[Tensor]) -> FedProxState:
        return FedProxState(clones(params), clones(params))

    @takes_stacks
    def after_step(self, step: LocalStep, state: FedProxState) -> FedProxState:
        torch._foreach_sub_(state.current, state.anchor)
        torch._foreach_add_(step.params, state.current, alpha=-step.lr * self.mu)
        torch._foreach_copy_(state.current, step.params)
        return state
