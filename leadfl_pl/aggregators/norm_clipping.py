"""Norm clipping, as a step before any rule."""

from __future__ import annotations

from torch import Tensor

from leadfl_pl.aggregators.pre_aggregation import PreStep
from leadfl_pl.core.distances import row_norms
from leadfl_pl.core.errors import require_number


class NormClipping(PreStep):
    """Scales each update down to an L2 norm of at most ``max_norm``.

    >>> import torch
    >>> NormClipping(max_norm=1.0)(torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.5000]])

    Args:
        max_norm: > 0; the median norm of the round's updates if not given.

    Raises:
        ConfigError: max_norm <= 0.

    References:
        Sun, Kairouz, Suresh, McMahan. Can You Really Backdoor Federated Learning?
        arXiv:1911.07963, 2019.
    """

    def __init__(self, max_norm: float | None = None) -> None:
        super().__init__()
        if max_norm is not None:
            require_number("NormClipping", "max_norm", max_norm, above=0)
        self.max_norm = max_norm

    def forward(self, updates: Tensor) -> Tensor:
        norms = row_norms(updates)
        bound = norms.quantile(0.5) if self.max_norm is None else self.max_norm
        share = (bound / norms).clamp_max(1.0).nan_to_num(nan=1.0)  # 0 / 0: nothing to clip
        return updates * share.to(updates)[:, None]
