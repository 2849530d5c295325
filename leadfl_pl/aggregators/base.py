"""The seam of the server-side rules, and the plain mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leadfl_pl.aggregators.validation import reject
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.values import ServerContext

LARGE = 1 << 24  # entries of a stack that is not copied without need


class Aggregated(NamedTuple):
    """What a rule makes of a round's updates."""

    delta: Tensor  # (d,)
    selected: Tensor  # (m,) indices of the updates that it used


class Aggregator(nn.Module):
    """A rule that turns the updates of a round into one: (n, d), (n,) -> (d,).

    A rule never learns who is malicious. Rules that select clients override :meth:`select`;
    :meth:`combine` makes one update of the selected ones. A rule that needs all the updates at
    once, noise or the server's root update overrides :meth:`aggregate` instead. A federation calls
    :meth:`aggregate`, so ``forward`` must be left as it is.

    What a rule remembers between rounds is a buffer, which the checkpoint carries; one whose shape
    depends on d starts empty and takes the shape of what a checkpoint holds.
    """

    root_size = 0  # examples that the server trains on by itself in every round

    def check(self, n: int) -> None:
        """Raises :class:`ConfigError` if the rule cannot work on ``n`` updates."""

    def check_size(self, d: int) -> None:
        """Raises :class:`ConfigError` if the rule cannot work on updates of ``d`` coordinates."""

    def select(self, updates: Tensor) -> Tensor:
        """Indices (m,) of the clients whose updates are used; all of them by default."""
        return torch.arange(updates.shape[0], device=updates.device)

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        """One update (d,) from the selected (m, d), given their numbers of examples (m,)."""
        raise NotImplementedError(f"{type(self).__name__} must define combine() or aggregate()")

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        """Selects, then combines; all updates are finite and as many as :meth:`check` asks for."""
        index = self.select(updates)
        if type(self).select is not Aggregator.select:  # else spare the copy
            updates, weights = updates[index], weights[index]
        return Aggregated(self.combine(updates, weights), index)

    def forward(
        self,
        updates: Tensor,
        weights: Tensor | None = None,
        server: ServerContext | None = None,
    ) -> Tensor:
        """One update (d,), in the dtype of the updates, after malformed ones were rejected.

        Args:
            updates: (n, d), one row for each client of the cohort. Rows that are not finite, or
                whose norm is beyond 1.8e19, are left out with a warning.
            weights: (n,) numbers of examples; equal if not given. Rows whose weight is not
                positive are left out with a warning. Rules from the Byzantine literature ignore
                the weights otherwise: a client could lie about its size.
            server: noise and root update, for the rules that use them.

        Raises:
            ConfigError: the rule needs more updates than there are, or than are left.
            ValueError: the shapes are wrong.
        """
        if updates.ndim != 2:
            raise ValueError(f"updates must have shape (n, d), got {tuple(updates.shape)}")
        weights = updates.new_ones(len(updates)) if weights is None else weights
        if weights.shape != updates.shape[:1]:
            raise ValueError(
                f"weights must have shape ({len(updates)},), one for each update, "
                f"got {tuple(weights.shape)}"
            )
        dtype = torch.promote_types(updates.dtype, torch.float32)
        keep = reject(updates, weights, names=[f"row {i}" for i in range(len(updates))])
        self.check_enough(len(keep), len(updates))
        self.check_size(updates.shape[1])
        if len(keep) < len(updates):
            updates, weights = updates[keep], weights[keep]
        found = self.aggregate(updates.to(dtype), weights.to(dtype), server or ServerContext())
        return found.delta.to(updates.dtype)

    def check_enough(self, n: int, received: int) -> None:
        """:meth:`check` on the ``n`` updates that are left of ``received``."""
        try:
            if n < 1:
                raise ConfigError(f"{type(self).__name__} needs n >= 1 updates, got n = {n}")
            self.check(n)
        except ConfigError as error:
            if n == received:
                raise
            raise ConfigError(
                f"{error}, after {received - n} of {received} were rejected"
            ) from error

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None and buffer.numel() == 0:
                setattr(self, name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class MeanOfSelected(Aggregator):
    """Base of the rules that select updates and average them."""

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        return updates.mean(dim=0)

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        if updates.numel() < LARGE:
            return super().aggregate(updates, weights, server)
        index = self.select(updates)  # a copy of the selected rows would cost more than the mean
        share = updates.new_zeros(len(updates)).index_fill_(0, index, 1 / len(index))
        return Aggregated(torch.mv(updates.T, share), index)


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


def require_positive(owner: str, name: str, value: float) -> None:
    """Raises unless ``value`` is a number in (0, inf)."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"{owner}: {name} must be > 0, got {name} = {value}")
