"""SparseFed: only the largest coordinates of the accumulated update reach the model."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import (
    Aggregator,
)
from leadfl_pl.core.distances import row_norms
from leadfl_pl.core.errors import ConfigError, require_number


class SparseFed(Aggregator):
    r"""SparseFed: clip, average, momentum, error feedback, top-k.

    With each update clipped to an L2 norm of L and :math:`\bar g` their mean:
    :math:`V \leftarrow \rho V + \bar g`, :math:`E \leftarrow E + V`, and the aggregate is E on its
    k largest coordinates by magnitude, where E and V then start anew from zero.

    >>> rule = SparseFed(k=1, clip=10.0, momentum=0.0)
    >>> rule(torch.tensor([[2.0, 3.0]])), rule(torch.tensor([[2.0, 3.0]]))
    (tensor([0., 3.]), tensor([4., 0.]))

    Args:
        k: coordinates that are updated in a round, 1 <= k <= d; with d it is the mean of the
            clipped updates, whatever the momentum, since E and V start anew.
        clip: L, > 0.
        momentum: rho, in [0, 1).

    Raises:
        ConfigError: a setting out of range, k > d.

    References:
        Panda, Mahloujifar, Bhagoji, Chakraborty, Mittal. SparseFed: Mitigating Model Poisoning
        Attacks in Federated Learning with Sparsification. AISTATS 2022.
    """

    velocity: Tensor  # V, (d,) from the first round on
    error: Tensor  # E, (d,)

    def __init__(self, k: int, clip: float = 1.0, momentum: float = 0.9) -> None:
        super().__init__()
        require_number("SparseFed", "k", k, least=1, whole=True)
        require_number("SparseFed", "clip", clip, above=0)
        require_number("SparseFed", "momentum", momentum, least=0, below=1)
        self.k = k
        self.clip = clip
        self.momentum = momentum
        self.register_buffer("velocity", torch.empty(0))
        self.register_buffer("error", torch.empty(0))

    def check_size(self, d: int) -> None:
        if self.k > d:
            raise ConfigError(
                f"SparseFed: k must be <= d = {d}, the number of coordinates, got k = {self.k}"
            )

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        if not self.velocity.numel():
            self.velocity = updates.new_zeros(updates.shape[1])
            self.error = torch.zeros_like(self.velocity)
        share = (self.clip / row_norms(updates)).clamp_max(1.0) / len(updates)
        self.velocity = self.momentum * self.velocity + torch.mv(updates.T, share.to(updates))
        self.error = self.error + self.velocity
        largest = self.error.abs().topk(self.k).indices
        delta = torch.zeros_like(self.error)
        delta[largest] = self.error[largest]
        self.error[largest] = 0.0
        self.velocity[largest] = 0.0
        return delta
