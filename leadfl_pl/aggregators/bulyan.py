"""Bulyan: repeated Krum, then a trimmed mean around the median."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import Aggregator, require_byzantine
from leadfl_pl.aggregators.order_statistics import middle, over_sorted
from leadfl_pl.core.distances import krum_scores, squared_distances
from leadfl_pl.core.errors import ConfigError, require_number


class Bulyan(Aggregator):
    """Bulyan: theta = n - 2f updates chosen by repeated Krum, then a coordinate-wise mean.

    Krum picks one update at a time from those that remain, each time over
    max(1, remaining - f - 2) neighbours. Then each coordinate is the mean of the beta =
    theta - 2f values nearest to the coordinate's median.

    >>> Bulyan(f=1)(torch.tensor([[0.0], [1.0], [2.0], [4.0], [7.0], [8.0], [90.0]]))
    tensor([1.])

    Args:
        f: number of Byzantine updates assumed in a round; the rule needs n >= 4f + 3.

    Raises:
        ConfigError: n < 4f + 3.

    References:
        El Mhamdi, Guerraoui, Rouault. The Hidden Vulnerability of Distributed Learning in
        Byzantium. ICML 2018.

    Differences:
        1. The ``bulyan`` of the released LeadFL code is another rule: :class:`ReleasedBulyan`.
    """

    def __init__(self, f: int = 1) -> None:
        super().__init__()
        require_number("Bulyan", "f", f, least=0, whole=True)
        self.f = f

    def check(self, n: int) -> None:
        require_byzantine("Bulyan", self.f, n, factor=4)

    def select(self, updates: Tensor) -> Tensor:
        n = updates.shape[0]
        distances = squared_distances(updates)
        remaining = torch.arange(n, device=updates.device)
        picked = []
        for _ in range(n - 2 * self.f):
            r = remaining.numel()
            neighbours = min(max(1, r - self.f - 2), r - 1)
            best = krum_scores(distances[remaining][:, remaining], neighbours).argmin()
            picked.append(remaining[best])
            remaining = remaining[torch.arange(r, device=updates.device) != best]
        return torch.stack(picked)

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        beta = updates.shape[0] - 2 * self.f  # theta - 2f
        return over_sorted(updates, lambda values: mean_around_median(values, beta))


def mean_around_median(values: Tensor, beta: int) -> Tensor:
    """Mean (c,) of the ``beta`` values nearest to the median, for ascending rows (c, theta).

    Those lie side by side. The window starts at the left end and moves to the right for as long as
    the next value is nearer to the median than its first one.

    >>> mean_around_median(torch.tensor([[0.0, 4.0, 5.0, 7.0]]), beta=2)
    tensor([4.5000])
    """
    median = middle(values)[:, None]
    moves = values[:, beta:] - median < median - values[:, : values.shape[1] - beta]
    start = moves.sum(dim=1, keepdim=True)
    place = torch.arange(values.shape[1], device=values.device)
    inside = (place >= start) & (place < start + beta)
    return torch.where(inside, values, 0.0).sum(dim=1) / beta


class ReleasedBulyan(Aggregator):
    """The rule called ``bulyan`` in the released LeadFL code: the mean of Krum ranks 2 to 4.

    >>> ReleasedBulyan()(torch.tensor([[0.0], [1.0], [2.0], [4.0], [7.0], [8.0], [90.0]]))
    tensor([4.3333])

    Args:
        neighbours: how many *other* updates a score sums over, 6 in the released code.

    Raises:
        ConfigError: fewer than neighbours + 1 updates.

    References:
        github.com/chaoyitud/LeadFL at 06ecc98, ``fltk/strategy/aggregation/bulyan.py``.
    """

    def __init__(self, neighbours: int = 6) -> None:
        super().__init__()
        require_number("ReleasedBulyan", "neighbours", neighbours, least=3, whole=True)
        self.neighbours = neighbours

    def check(self, n: int) -> None:
        if n <= self.neighbours:
            raise ConfigError(
                f"ReleasedBulyan needs n >= neighbours + 1 = {self.neighbours + 1} updates, "
                f"got n = {n}"
            )

    def select(self, updates: Tensor) -> Tensor:
        scores = krum_scores(squared_distances(updates), self.neighbours)
        return scores.argsort(stable=True)[1:4]

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        return updates.mean(dim=0)
