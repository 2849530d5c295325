"""DnC: updates that stand out along the direction in which the updates differ most are dropped."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import Aggregated, Aggregator
from leadfl_pl.core.distances import gram
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.values import ServerContext


def outlier_scores(updates: Tensor) -> Tensor:
    r"""Squared components :math:`\langle\delta_c - \mu, v\rangle^2`, (n,) in float64.

    v is the top right singular vector of the updates (n, d) less their mean :math:`\mu`. It is not
    formed: with the top eigenvalue and eigenvector u of the inner products, (n, n), the scores are
    :math:`\lambda u_c^2`.

    >>> outlier_scores(torch.tensor([[0.0, 3.0], [1.0, 3.0], [5.0, 3.0]])).round(decimals=4)
    tensor([4., 1., 9.], dtype=torch.float64)
    """
    mean = updates.new_full((len(updates),), 1 / len(updates), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(gram(updates, about=mean).cpu())
    scores: Tensor = values[-1] * vectors[:, -1].square()
    return scores.to(updates.device)


class DnC(Aggregator):
    r"""Divide and conquer: the mean of the updates that are no outliers in any of several trials.

    Each trial looks at r random coordinates of the updates, scores each update there by its squared
    component along the top right singular vector of the centred ones (``outlier_scores``), and
    drops the :math:`\lceil cf \rceil` highest scores. The updates that no trial drops are averaged;
    the aggregate is zero if there are none.

    >>> updates = torch.tensor([[1.0, 0.0], [1.2, 0.1], [0.9, -0.1], [-4.0, 3.0]])
    >>> DnC(f=1)(updates).round(decimals=4)
    tensor([1.0333, 0.0000])

    Args:
        f: number of Byzantine updates assumed in a round, >= 0.
        c: filtering fraction, > 0: how many updates are dropped for each one of f.
        coordinates: r, >= 1; all of them if there are fewer.
        iterations: trials, >= 1.

    Raises:
        ConfigError: a setting out of range; not more than :math:`\lceil cf \rceil` updates.

    References:
        Shejwalkar, Houmansadr. Manipulating the Byzantine: Optimizing Model Poisoning Attacks and
        Defenses for Federated Learning. NDSS 2021.

    Differences:
        1. The paper does not say what follows if the trials have no update in common: the global
           model is kept.
        2. The paper does not say how c f is rounded.
    """

    def __init__(
        self, f: int = 1, c: float = 1.0, coordinates: int = 10_000, iterations: int = 1
    ) -> None:
        super().__init__()
        require_number("DnC", "f", f, least=0, whole=True)
        require_number("DnC", "c", c, above=0)
        require_number("DnC", "coordinates", coordinates, least=1, whole=True)
        require_number("DnC", "iterations", iterations, least=1, whole=True)
        self.f = f
        self.c = c
        self.coordinates = coordinates
        self.iterations = iterations

    @property
    def dropped(self) -> int:
        """How many updates a trial drops."""
        return ceil(round(self.c * self.f, 9))  # 0.28 times 25 is a little more than 7

    def check(self, n: int) -> None:
        if n <= self.dropped:
            raise ConfigError(
                f"DnC needs n >= cf + 1 = {self.dropped + 1} updates for c = {self.c:g} and "
                f"f = {self.f}, got n = {n}"
            )

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        n, d = updates.shape
        kept = torch.ones(n, dtype=torch.bool, device=updates.device)
        for _ in range(self.iterations):
            drawn = torch.randperm(d, generator=server.generator, device=updates.device)
            scores = outlier_scores(updates[:, drawn[: self.coordinates]])
            kept[scores.argsort(stable=True)[n - self.dropped :]] = False
        share = kept.to(updates) / kept.sum().clamp_min(1)
        return Aggregated(torch.mv(updates.T, share), kept.nonzero().squeeze(1))
