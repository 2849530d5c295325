"""FoolsGold: clients that always pull in the same direction count as one."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import Aggregated, Aggregator
from leadfl_pl.core.distances import gram
from leadfl_pl.core.errors import require_number
from leadfl_pl.core.values import ServerContext

PARALLEL = 1e-12  # 1 - cosine below it is rounding


def contribution_weights(histories: Tensor, kappa: float = 1.0) -> Tensor:
    r"""Weights :math:`\alpha_c` in [0, 1] of n clients, (n,) in float64, by their histories (n, d).

    With the cosines :math:`s_{ij}` of two histories and :math:`v_i = \max(0, \max_{j \neq i}
    s_{ij})`, a client that resembles one who resembles others more is pardoned:
    :math:`s_{ij} \leftarrow s_{ij} v_i / v_j` where :math:`v_j > v_i`. Then
    :math:`\alpha_i = 1 - \max_j s_{ij}`, within [0, 1], is divided by the largest one, and

    .. math:: \alpha_i \leftarrow \kappa \Bigl(\ln \frac{\alpha_i}{1 - \alpha_i} + 0.5\Bigr)

    within [0, 1] again.

    >>> contribution_weights(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    tensor([0., 0., 1.], dtype=torch.float64)
    """
    products = gram(histories)
    norms = products.diagonal().sqrt()
    cosines = (products / (norms[:, None] * norms)).nan_to_num(nan=0.0)  # a zero history
    cosines.fill_diagonal_(0.0)
    largest = cosines.amax(dim=1)  # v
    pardon = torch.where(largest > largest[:, None], largest[:, None] / largest, 1.0)
    alphas = (1 - (cosines * pardon).amax(dim=1)).clamp(0.0, 1.0)
    alphas = torch.where(alphas < PARALLEL, 0.0, alphas)
    alphas = (alphas / alphas.max()).nan_to_num(nan=0.0)  # all of them are alike
    return (kappa * (alphas.logit() + 0.5)).clamp(0.0, 1.0)


class FoolsGold(Aggregator):
    r"""FoolsGold: the less a client's history resembles the others', the more its update counts.

    The aggregate is :math:`\frac1n \sum_c \alpha_c \delta_c`, where :math:`\alpha_c` are the
    ``contribution_weights`` of :math:`H_c`, the sum of all updates of client c up to this
    round. All weights zero keep the model.

    The rule remembers H of every client that ever took part: K x d numbers at most, 116 MB for
    1,000 clients and 29,034 parameters in float32. They are kept beside the model and in the
    checkpoint.

    >>> FoolsGold()(torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 6.0]]))
    tensor([0., 2.])

    Args:
        kappa: confidence, > 0: how fast a weight goes from 0 to 1.

    Raises:
        ConfigError: kappa <= 0.

    References:
        Fung, Yoon, Beschastnikh. The Limitations of Federated Learning in Sybil Settings. RAID
        2020.

    Differences:
        1. The paper adds the weighted sum to the model, without 1/n, where a client takes one
           gradient step: ``server_lr: n`` does.
        2. The paper can weigh coordinates by their importance for the output layer; here all count
           the same, for a rule does not see the layers.
        3. As in the authors' code, a client that resembles nobody has v = 0, not a negative one.
        4. Where nobody says which clients sent the updates (``ServerContext.clients``), as in a
           call with updates alone, H are the updates of the round.
    """

    clients: Tensor  # (m,) int64, those that took part so far
    history: Tensor  # (m, d) H

    def __init__(self, kappa: float = 1.0) -> None:
        super().__init__()
        require_number("FoolsGold", "kappa", kappa, above=0)
        self.kappa = kappa
        self.register_buffer("clients", torch.empty(0, dtype=torch.int64))
        self.register_buffer("history", torch.empty(0))

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        clients = server.clients
        histories = updates if clients is None else self.remember(updates, clients)
        alphas = contribution_weights(histories, self.kappa)
        delta = torch.mv(updates.T, (alphas / len(updates)).to(updates))
        return Aggregated(delta, alphas.nonzero().squeeze(1))

    def remember(self, updates: Tensor, clients: Tensor) -> Tensor:
        """Adds the updates (n, d) of the clients (n,) to their histories, and returns these."""
        self.clients = self.clients.to(clients.device)
        self.history = self.history.to(updates.device)
        new = clients[~torch.isin(clients, self.clients)]
        self.clients = torch.cat([self.clients, new])
        rows = updates.new_zeros(len(new), updates.shape[1])
        self.history = torch.cat([self.history, rows]) if self.history.numel() else rows
        at = (self.clients == clients[:, None]).long().argmax(dim=1)
        self.history.index_add_(0, at, updates.to(self.history))
        return self.history[at]
