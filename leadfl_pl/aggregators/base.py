"""The seam of the server-side rules, and the plain mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leadfl_pl.types import ConfigError


class Aggregator(nn.Module):
    """A rule that turns the updates of a round into one: (n, d), (n,) -> (d,).

    A rule never learns who is malicious. What it remembers between rounds is a buffer, which the
    checkpoint carries. Rules that select clients override :meth:`select`; :meth:`combine` makes
    one update of the selected ones. A federation calls these two itself, so ``forward`` must be
    left as it is.
    """

    def check(self, n: int) -> None:
        """Raises :class:`ConfigError` if the rule cannot work on ``n`` updates."""

    def select(self, updates: Tensor) -> Tensor:
        """Indices (m,) of the clients whose updates are used; all of them by default."""
        return torch.arange(updates.shape[0], device=updates.device)

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        """One update (d,) from the selected (m, d), given their numbers of examples (m,)."""
        raise NotImplementedError(f"{type(self).__name__} must define combine()")

    def forward(self, updates: Tensor, weights: Tensor | None = None) -> Tensor:
        """Selects, then combines.

        Args:
            updates: (n, d), one row for each client of the cohort.
            weights: (n,) numbers of examples; equal if not given. Rules from the Byzantine
                literature ignore them: a client could lie about its size.

        Raises:
            ConfigError: the rule needs more updates than there are.
        """
        self.check(updates.shape[0])
        index = self.select(updates)
        weights = updates.new_ones(updates.shape[0]) if weights is None else weights
        return self.combine(updates[index], weights[index])


class FedAvg(Aggregator):
    """FedAvg: the mean of the updates, weighted by numbers of examples.

    >>> FedAvg()(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 1.0]))
    tensor([2.])

    References:
        McMahan, Moore, Ramage, Hampson, Aguera y Arcas. Communication-Efficient Learning of Deep
        Networks from Decentralized Data. AISTATS 2017.
    """

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        weights = weights.to(updates.dtype)
        return weights / weights.sum() @ updates


def require_byzantine(owner: str, f: int, n: int, factor: int) -> None:
    """Raises unless n >= factor * f + 3, the bound of the Krum family."""
    if n < factor * f + 3:
        raise ConfigError(
            f"{owner} needs n >= {factor}f + 3 = {factor * f + 3} updates for f = {f}, got n = {n}"
        )


def require_count(owner: str, name: str, value: int, least: int) -> None:
    """Raises unless ``value >= least``."""
    if value < least:
        raise ConfigError(f"{owner}: {name} must be >= {least}, got {name} = {value}")
