"""Krum and Multi-Krum: the updates that lie closest to their neighbours."""

from __future__ import annotations

from torch import Tensor

from leadfl_pl.aggregators.base import Aggregator, require_byzantine
from leadfl_pl.core.distances import krum_scores, squared_distances
from leadfl_pl.core.errors import ConfigError, require_number


class MultiKrum(Aggregator):
    r"""Multi-Krum: the mean of the m updates with the smallest scores.

    :math:`s(i) = \sum_{j \to i} \lVert \delta_i - \delta_j \rVert^2` over the n - f - 2 nearest
    *other* updates. Ties go to the earlier row.

    >>> import torch
    >>> MultiKrum(f=1, m=2)(torch.tensor([[0.0], [1.0], [2.0], [4.0], [90.0]]))
    tensor([0.5000])

    Args:
        f: number of Byzantine updates assumed in a round; the rule needs n >= 2f + 3.
        m: number of updates averaged, 1 <= m <= n - f; n - f if not given.

    Raises:
        ConfigError: n < 2f + 3 or m out of range.

    References:
        Blanchard, El Mhamdi, Guerraoui, Stainer. Machine Learning with Adversaries: Byzantine
        Tolerant Gradient Descent. NeurIPS 2017.

    Differences:
        1. The released LeadFL code fixes 7 neighbours and m = 5, whatever n: for n = 10 that is
           ``MultiKrum(f=1, m=5)``.
        2. The released code sums squared distances per tensor in float32 over the whole
           state dict; see ``distance_space="state"`` in :class:`leadfl_pl.Federation`.
    """

    def __init__(self, f: int = 1, m: int | None = None) -> None:
        super().__init__()
        require_number(type(self).__name__, "f", f, least=0, whole=True)
        if m is not None:
            require_number(type(self).__name__, "m", m, least=1, whole=True)
        self.f = f
        self.m = m

    def check(self, n: int) -> None:
        require_byzantine(type(self).__name__, self.f, n, factor=2)
        if self.m is not None and self.m > n - self.f:
            raise ConfigError(
                f"{type(self).__name__} needs m <= n - f = {n - self.f} for n = {n} and "
                f"f = {self.f}, got m = {self.m}"
            )

    def select(self, updates: Tensor) -> Tensor:
        n = updates.shape[0]
        scores = krum_scores(squared_distances(updates), n - self.f - 2)
        return scores.argsort(stable=True)[: n - self.f if self.m is None else self.m]

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        return updates.mean(dim=0)


class Krum(MultiKrum):
    """Krum: the one update with the smallest score, i.e. Multi-Krum with m = 1.

    >>> import torch
    >>> Krum(f=1)(torch.tensor([[0.0], [1.0], [2.0], [4.0], [90.0]]))
    tensor([1.])

    Args:
        f: number of Byzantine updates assumed in a round; the rule needs n >= 2f + 3.

    Raises:
        ConfigError: n < 2f + 3.

    References:
        Blanchard et al. 2017, see :class:`MultiKrum`.

    Differences:
        1. The released LeadFL code sums 5 neighbours, whatever n: for n = 10 that is
           ``Krum(f=3)``.
    """

    def __init__(self, f: int = 1) -> None:
        super().__init__(f=f, m=1)
