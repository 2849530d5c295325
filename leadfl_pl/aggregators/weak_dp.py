"""Norm clipping with weak noise."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import (
    Aggregated,
    Aggregator,
)
from leadfl_pl.core.distances import row_norms
from leadfl_pl.core.errors import require_number
from leadfl_pl.core.values import ServerContext


class WeakDP(Aggregator):
    r"""Norm clipping with weak noise: FedAvg of updates clipped to an L2 norm of M, plus
    :math:`\mathcal N(0, \sigma^2)` in each coordinate.

    >>> WeakDP(max_norm=1.0, noise=0.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([0.4500, 0.6000])

    Args:
        max_norm: M, > 0.
        noise: standard deviation sigma, >= 0; 0 is clipping alone.

    Raises:
        ConfigError: a setting out of range.

    References:
        Sun, Kairouz, Suresh, McMahan. Can You Really Backdoor Federated Learning?
        arXiv:1911.07963, 2019.

    Differences:
        1. The noise is far too small for differential privacy, in the paper as here; hence "weak".
    """

    def __init__(self, max_norm: float = 1.0, noise: float = 0.001) -> None:
        super().__init__()
        require_number("WeakDP", "max_norm", max_norm, above=0)
        require_number("WeakDP", "noise", noise, least=0)
        self.max_norm = max_norm
        self.noise = noise

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        shares = weights / weights.sum() * (self.max_norm / row_norms(updates)).clamp_max(1.0)
        mean = torch.mv(updates.T, shares.to(updates))
        noise = torch.empty_like(mean).normal_(generator=server.generator)
        return Aggregated(mean + self.noise * noise, self.select(updates))
