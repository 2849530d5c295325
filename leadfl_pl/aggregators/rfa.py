"""RFA: the geometric median by the smoothed Weiszfeld algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import Aggregator, require_count, require_positive
from leadfl_pl.core.distances import distances_to_combination


def weiszfeld(
    points: Tensor, shares: Tensor, nu: float, tolerance: float, max_iterations: int
) -> Tensor:
    r"""Weights (n,) of the points in their geometric median, float64.

    :math:`w_c \propto \alpha_c / \max(\nu, \lVert x_c - z \rVert)` with
    :math:`z = \sum_c w_c x_c`, again and again.

    Args:
        points: (n, d).
        shares: alpha, how much each point counts (n,), summing to 1; also the start.
        nu: distances below it count as nu.
        tolerance: stop when z cannot have moved by more than this times the harmonic mean of the
            distances, which far points do not change.
        max_iterations: stop after as many iterations.

    >>> points, shares = torch.tensor([[0.0], [1.0], [9.0]]), torch.full((3,), 1 / 3)
    >>> weiszfeld(points, shares, 1e-6, 1e-6, 100).round(decimals=4)
    tensor([0., 1., 0.], dtype=torch.float64)
    """
    shares = shares.double()
    weights = shares
    for _ in range(max_iterations):
        distances = distances_to_combination(points, weights).clamp_min_(nu)
        closeness = shares / distances
        new = closeness / closeness.sum()
        moved = (new - weights).abs() @ distances  # at least
        weights = new
        if moved * closeness.sum() <= tolerance:
            break
    return weights


class RFA(Aggregator):
    r"""RFA: the geometric median :math:`\arg\min_z \sum_c \alpha_c \lVert \delta_c - z \rVert`.

    The weights :math:`\alpha_c` are the clients' shares of the examples. All the updates take part
    in it, far ones with a small weight.

    >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    >>> RFA()(points + 2).round(decimals=4)
    tensor([2.5000, 2.5000])

    Args:
        nu: smoothing: distances below it count as nu, > 0.
        tolerance: relative change at which the iteration stops, > 0.
        max_iterations: most iterations, >= 1.

    Raises:
        ConfigError: a setting out of range.

    References:
        Pillutla, Kakade, Harchaoui. Robust Aggregation for Federated Learning. IEEE Transactions
        on Signal Processing 2022.

    Differences:
        1. The authors stop when the *objective* changes by less than a share of 1e-6, which may
           leave the point off by 1e-3; here the change of the point itself is compared, with its
           distance to the updates.
        2. The authors stop after 3 or 4 iterations, for each of them costs a round of secure
           aggregation.
    """

    def __init__(
        self, nu: float = 1e-6, tolerance: float = 1e-6, max_iterations: int = 100
    ) -> None:
        super().__init__()
        require_positive("RFA", "nu", nu)
        require_positive("RFA", "tolerance", tolerance)
        require_count("RFA", "max_iterations", max_iterations, 1)
        self.nu = nu
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        shares = weights.double() / weights.double().sum()
        found = weiszfeld(updates, shares, self.nu, self.tolerance, self.max_iterations)
        return torch.mv(updates.T, found.to(updates))
