"""CRFL: the global model itself is clipped and smoothed with noise."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import Aggregated, FedAvg
from leadfl_pl.core.distances import row_norms
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.values import ServerContext


class CRFL(FedAvg):
    r"""CRFL: FedAvg, after which the global model is clipped to a norm, and noise is added to it.

    With the mean update :math:`\bar\delta` and the global model :math:`\theta_t`, (d,) each,

    .. math::
        \theta_{t+1} = (\theta_t + \bar\delta)
            \min\Bigl(1, \frac{\rho_t}{\lVert\theta_t + \bar\delta\rVert}\Bigr) + \varepsilon_t,
        \quad \varepsilon_t \sim \mathcal N(0, \sigma^2 I), \quad
        \rho_t = \rho_0 + (t + 1)\,\mathrm{growth}

    where t counts the rounds with an aggregate from 0.

    >>> theta = torch.tensor([3.0, 3.0])
    >>> rule = CRFL(norm=2.5, growth=0.0, sigma=0.0)
    >>> theta + rule(torch.tensor([[0.0, 1.0]]), server=ServerContext(model=theta))
    tensor([1.5000, 2.0000])

    Args:
        norm: :math:`\rho_0`, > 0.
        growth: of the norm in a round, >= 0.
        sigma: standard deviation of the noise, >= 0.

    Raises:
        ConfigError: a setting out of range; no global model.

    References:
        Xie, Chen, Chen, Li. CRFL: Certifiably Robust Federated Learning against Backdoor Attacks.
        ICML 2021.

    Differences:
        1. The paper's certificate is not computed. It is of a vote over many noisy copies of the
           last model, for multi-class logistic regression in which all clients take part in every
           round and one round is attacked.
        2. The last model has noise like those before it; the paper's is clipped only, and the
           authors' code evaluates each round's before the noise.
        3. The norm is that of the vector that rules see, the scale and shift of a normalisation
           included; with a ``server_lr`` other than 1 the model moves by that share of the way.
    """

    rounds: Tensor  # () int64, t + 1

    def __init__(self, norm: float = 2.0, growth: float = 0.1, sigma: float = 0.01) -> None:
        super().__init__()
        require_number("CRFL", "norm", norm, above=0)
        require_number("CRFL", "growth", growth, least=0)
        require_number("CRFL", "sigma", sigma, least=0)
        self.norm = norm
        self.growth = growth
        self.sigma = sigma
        self.register_buffer("rounds", torch.tensor(0))

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        if server.model is None:
            raise ConfigError("CRFL needs the global model, server.model")
        self.rounds = self.rounds + 1
        theta = server.model.to(updates)
        moved = theta + self.combine(updates, weights)
        bound = self.norm + self.growth * self.rounds.double()
        clipped = moved * (bound / row_norms(moved[None])).clamp_max(1.0).to(moved)
        noise = torch.empty_like(clipped).normal_(generator=server.generator)
        return Aggregated(clipped + self.sigma * noise - theta, self.select(updates))
