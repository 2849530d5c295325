"""The coordinate-wise trimmed mean."""

from __future__ import annotations

import math

from torch import Tensor

from leadfl_pl.aggregators.base import Aggregator
from leadfl_pl.aggregators.order_statistics import over_sorted
from leadfl_pl.core.errors import require_number


def trimmed(beta: float, n: int) -> int:
    r""":math:`\lfloor\beta n\rfloor` < n/2, for the decimal or fraction that was written.

    >>> trimmed(0.29, 100), int(0.29 * 100)
    (29, 28)
    """
    return min(math.floor(round(beta * n, 9)), (n - 1) // 2)


class TrimmedMean(Aggregator):
    r"""Trimmed mean: per coordinate, the mean without the :math:`\lfloor\beta n\rfloor` smallest
    and as many largest values.

    >>> import torch
    >>> TrimmedMean(beta=0.25)(torch.tensor([[0.0], [1.0], [3.0], [90.0]]))
    tensor([2.])

    Args:
        beta: share trimmed at each end, in [0, 1/2); 0 is the plain mean.

    Raises:
        ConfigError: beta out of range.

    References:
        Yin, Chen, Ramchandran, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates. ICML 2018.

    Differences:
        1. The released LeadFL code computes in float32 whatever the dtype of the updates.
    """

    def __init__(self, beta: float = 0.2) -> None:
        super().__init__()
        require_number("TrimmedMean", "beta", beta, least=0, below=0.5)
        self.beta = beta

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        n = len(updates)
        cut = trimmed(self.beta, n)
        return over_sorted(updates, lambda values: values[:, cut : n - cut].mean(dim=1))
