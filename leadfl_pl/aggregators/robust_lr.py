"""RobustLR: coordinates on whose direction too few clients agree are moved the other way."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import FedAvg
from leadfl_pl.core.errors import ConfigError, require_number


class RobustLR(FedAvg):
    r"""Robust learning rate: FedAvg, with its sign turned where clients disagree.

    In each coordinate the weighted mean of the updates is multiplied by

    .. math::
        \eta = \begin{cases}
            +1 & \text{if } \bigl|\sum_c \mathrm{sign}\,\delta_c\bigr| \ge \theta \\
            -1 & \text{otherwise}
        \end{cases}

    >>> RobustLR(theta=3)(torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, -9.0]]))
    tensor([1., 2.])

    Args:
        theta: learning threshold, >= 0: how many more clients must pull in one direction than in
            the other; 0 is FedAvg. Above the number of attackers, they alone can move a coordinate
            only against the sign that they send.

    Raises:
        ConfigError: theta < 0; theta > n, which would turn every coordinate.

    References:
        Ozdayi, Kantarcioglu, Gel. Defending against Backdoors in Federated Learning with Robust
        Learning Rate. AAAI 2021.
    """

    def __init__(self, theta: int = 4) -> None:
        super().__init__()
        require_number("RobustLR", "theta", theta, least=0, whole=True)
        self.theta = theta

    def check(self, n: int) -> None:
        if n < self.theta:
            raise ConfigError(
                f"RobustLR needs n >= theta = {self.theta} updates, or none can agree, got n = {n}"
            )

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        mean = super().combine(updates, weights)
        agreement = updates.sign().sum(dim=0).abs()
        return torch.where(agreement >= self.theta, mean, -mean)
