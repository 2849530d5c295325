"""Centered clipping: the updates, clipped around what they were in the last round."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import Aggregator
from leadfl_pl.core.distances import row_norms
from leadfl_pl.core.errors import require_number


class CenteredClipping(Aggregator):
    r"""Centered clipping: each update may pull the aggregate by a distance of :math:`\tau` at most.

    From v, the aggregate of the last round, zero before the first one, L times

    .. math::
        v \leftarrow v + \frac1n \sum_c (\delta_c - v)
            \min\Bigl(1, \frac{\tau}{\lVert\delta_c - v\rVert}\Bigr)

    The aggregate is v, (d,), which is remembered.

    >>> rule, updates = CenteredClipping(tau=1.0), torch.tensor([[1.0], [2.0], [99.0]])
    >>> rule(updates), rule(updates)
    (tensor([1.]), tensor([1.6667]))

    Args:
        tau: clipping radius, > 0.
        iterations: L, >= 1.

    Raises:
        ConfigError: a setting out of range.

    References:
        Karimireddy, He, Jaggi. Learning from History for Byzantine Robust Optimization. ICML 2021.

    Differences:
        1. The paper's workers send the momentum of their gradients, on which its convergence rests;
           here clients send their updates.
    """

    center: Tensor  # v, (d,) from the first round on

    def __init__(self, tau: float = 1.0, iterations: int = 1) -> None:
        super().__init__()
        require_number("CenteredClipping", "tau", tau, above=0)
        require_number("CenteredClipping", "iterations", iterations, least=1, whole=True)
        self.tau = tau
        self.iterations = iterations
        self.register_buffer("center", torch.empty(0))

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        if not self.center.numel():
            self.center = updates.new_zeros(updates.shape[1])
        for _ in range(self.iterations):
            differences = updates - self.center
            shares = (self.tau / row_norms(differences)).clamp_max(1.0) / len(updates)
            self.center = self.center + torch.mv(differences.T, shares.to(differences))
        return self.center.clone()
