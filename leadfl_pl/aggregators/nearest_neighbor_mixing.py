"""Nearest-neighbour mixing, as a step before any rule."""

from __future__ import annotations

from torch import Tensor

from leadfl_pl.aggregators.pre_aggregation import PreStep
from leadfl_pl.core.distances import squared_distances
from leadfl_pl.core.errors import ConfigError, require_number


class NearestNeighborMixing(PreStep):
    """NNM: replaces each update by the mean of the n - f updates nearest to it, itself included.

    So a client that the rule behind it does not select has weight in the means that it does select.

    >>> import torch
    >>> NearestNeighborMixing(f=1)(torch.tensor([[0.0], [1.0], [5.0]]))
    tensor([[0.5000],
            [0.5000],
            [3.0000]])

    Args:
        f: number of Byzantine updates assumed in a round; the step needs n >= 2f + 1.

    Raises:
        ConfigError: n < 2f + 1.

    References:
        Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan. Fixing by Mixing: A Recipe for
        Optimal Byzantine ML under Heterogeneity. AISTATS 2023.
    """

    def __init__(self, f: int = 1) -> None:
        super().__init__()
        require_number("NearestNeighborMixing", "f", f, least=0, whole=True)
        self.f = f

    def check(self, n: int) -> None:
        if n < 2 * self.f + 1:
            raise ConfigError(
                f"NearestNeighborMixing needs n >= 2f + 1 = {2 * self.f + 1} updates for "
                f"f = {self.f}, got n = {n}"
            )

    def forward(self, updates: Tensor) -> Tensor:
        kept = len(updates) - self.f
        nearest = squared_distances(updates).argsort(dim=1, stable=True)[:, :kept]
        mixing = updates.new_zeros(len(updates), len(updates)).scatter_(1, nearest, 1 / kept)
        return mixing @ updates
