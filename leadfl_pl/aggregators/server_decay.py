"""Decay of the global model by the server alone."""

from __future__ import annotations

from math import inf

from torch import Tensor

from leadfl_pl.aggregators.base import Aggregated, Aggregator, check_aggregated
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.values import ServerContext


class ServerDecay(Aggregator):
    r"""Any rule, after which the server shrinks the global model by :math:`2^{-1/T}` a round.

    With the rule's update :math:`\Delta` (d,) and the global model :math:`\theta_t` (d,), the
    update is :math:`s\Delta - (1 - s)\,\theta_t` with :math:`s = 2^{-1/T}`, so that

    .. math::
        \theta_{t+1} = s\,(\theta_t + \Delta)

    This is :class:`~leadfl_pl.Contraction` once a round in place of once a local step, and needs
    no client's help. Its theorem holds as well, with the same conditions.

    >>> import torch
    >>> from leadfl_pl import FedAvg
    >>> theta = torch.tensor([1.0, -2.0])
    >>> rule = ServerDecay(FedAvg(), half_life=1.0)
    >>> rule(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), server=ServerContext(model=theta))
    tensor([0.5000, 1.0000])

    Args:
        rule: any rule; it keeps its memory and gets its root update.
        half_life: T in rounds, > 0; infinity is the rule alone. Like the default of
            ``Contraction``, to be chosen for the task.

    Raises:
        ConfigError: half_life <= 0 or NaN; the rule needs more updates; no global model.

    Differences from ``Contraction``:
        1. Everything in the vector decays, the scale and shift of a normalisation included, and
           with ``distance_space: state`` the buffers: a rule does not see the tensors.
        2. With a ``server_lr`` other than 1 a round shrinks by 1 - server_lr * (1 - s).
        3. A round without an aggregate keeps the model, and does not shrink it.
    """

    def __init__(self, rule: Aggregator, half_life: float = 4.0) -> None:
        super().__init__()
        if half_life != inf:
            require_number("ServerDecay", "half_life", half_life, above=0)
        self.rule = rule
        self.half_life = half_life
        self.root_size = rule.root_size

    def check(self, n: int) -> None:
        self.rule.check(n)

    def check_size(self, d: int) -> None:
        self.rule.check_size(d)

    def select(self, updates: Tensor) -> Tensor:
        return self.rule.select(updates)

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        if server.model is None:
            raise ConfigError("ServerDecay needs the global model, server.model")
        result = self.rule.aggregate(updates, weights, server)
        delta, selected = check_aggregated(self.rule, result, *updates.shape)
        kept = 2.0 ** (-1 / self.half_life)
        return Aggregated(kept * delta - (1 - kept) * server.model.to(delta), selected)
