"""The coordinate-wise median."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from leadfl_pl.aggregators.base import Aggregator
from leadfl_pl.aggregators.order_statistics import middle, over_sorted
from leadfl_pl.core.errors import require_choice


class Median(Aggregator):
    """Coordinate-wise median: the mean of the two middle values for even n.

    >>> import torch
    >>> Median()(torch.tensor([[0.0, 9.0], [1.0, 2.0], [4.0, 3.0], [9.0, 0.0]]))
    tensor([2.5000, 2.5000])

    Args:
        formulation: ``"released"`` takes the lower of the two middle values for even n.

    References:
        Yin, Chen, Ramchandran, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates. ICML 2018.

    Differences:
        1. The released LeadFL code uses ``torch.median``, which is the lower middle value
           (``formulation="released"``).
    """

    def __init__(self, formulation: Literal["paper", "released"] = "paper") -> None:
        super().__init__()
        require_choice("Median", "formulation", formulation, ("paper", "released"))
        self.formulation = formulation

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        if self.formulation == "released":
            lower = (len(updates) - 1) // 2
            return over_sorted(updates, lambda values: values[:, lower])
        return over_sorted(updates, middle)
