"""The base class of the server-side rules, what is checked of them, and the plain mean."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from leadfl_pl.aggregators.validation import reject
from leadfl_pl.core.describe import remembers_only_in
from leadfl_pl.core.errors import ConfigError, require_signatures, summarise
from leadfl_pl.core.growing_buffers import GrowingBuffers
from leadfl_pl.core.rng import isolated_rng
from leadfl_pl.core.values import ServerContext


class Aggregated(NamedTuple):
    """The result of a rule."""

    delta: Tensor  #: (d,)
    selected: Tensor  #: (m,) int64, the rows that it used, each once


class Aggregator(GrowingBuffers):
    """A rule that turns the updates of a round into one: (n, d), (n,) -> (d,).

    A rule never learns who is malicious. Rules that select clients override :meth:`select`;
    :meth:`combine` makes one update of the selected ones. A rule that needs all the updates at
    once, noise or the server's root update overrides :meth:`aggregate` instead. A federation calls
    :meth:`aggregate`, so ``forward`` must be left as it is.

    What a rule remembers between rounds is a buffer, which the checkpoint carries; one whose shape
    depends on d starts empty and takes the shape of what a checkpoint holds.
    """

    root_size = 0  #: examples that the server trains on by itself in every round

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
        selected = self.select(updates)
        if type(self).select is not Aggregator.select:  # else all of them, not worth a copy
            check_selected(self, selected, len(updates))
            updates, weights = updates[selected], weights[selected]
        return Aggregated(self.combine(updates, weights), selected)

    def forward(
        self,
        updates: Tensor,
        weights: Tensor | None = None,
        server: ServerContext | None = None,
    ) -> Tensor:
        """One update (d,), in the dtype of the updates; malformed ones are left out first.

        Args:
            updates: (n, d), one row for each client of the cohort. Rows that are not finite, or
                whose norm is beyond 1.8e19, are left out with a warning.
            weights: (n,) numbers of examples; equal if not given. Rows whose weight is not
                positive are left out with a warning. Most rules ignore the weights otherwise: a
                client could lie about its size. FedAvg, RFA, RobustLR, WeakDP and CRFL use them.
            server: noise, root update, global model and ids, for the rules that use them.

        Raises:
            ConfigError: the rule needs more updates than there are, or than are left; it selects
                or returns something else than it must.
            ValueError: the shapes are wrong, or the updates' dtype.
        """
        if updates.ndim != 2:
            raise ValueError(f"updates must have shape (n, d), got {tuple(updates.shape)}")
        if not updates.is_floating_point():
            raise ValueError(f"updates must be of a floating dtype, got {updates.dtype}")
        weights = updates.new_ones(len(updates)) if weights is None else weights
        if weights.shape != updates.shape[:1]:
            raise ValueError(
                f"weights must have shape ({len(updates)},), one for each update, "
                f"got {tuple(weights.shape)}"
            )
        server = server or ServerContext()
        if server.clients is not None and server.clients.shape != updates.shape[:1]:
            raise ValueError(
                f"server.clients must have shape ({len(updates)},), one for each update, "
                f"got {tuple(server.clients.shape)}"
            )
        sent = updates.dtype
        updates = updates.detach().to(torch.promote_types(sent, torch.float32))
        keep = reject(updates, weights, names=[f"row {i}" for i in range(len(updates))])
        self.check_enough(len(keep), len(updates))
        self.check_size(updates.shape[1])
        if len(keep) < len(updates):
            updates, weights = updates[keep], weights[keep]
            if server.clients is not None:
                server = server._replace(clients=server.clients[keep])
        result = self.aggregate(updates, weights.to(updates.dtype), server)
        return check_aggregated(self, result, *updates.shape).delta.to(sent)

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
                f"{error}, after {received - n} of {received} were left out"
            ) from error


class FedAvg(Aggregator):
    r"""FedAvg: the mean of the updates, weighted by numbers of examples.

    :math:`\sum_c N_c \delta_c / \sum_c N_c` for updates :math:`\delta_c`, (d,) each, from
    :math:`N_c` examples.

    >>> FedAvg()(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 1.0]))
    tensor([2.])

    References:
        McMahan, Moore, Ramage, Hampson, Aguera y Arcas. Communication-Efficient Learning of Deep
        Networks from Decentralized Data. AISTATS 2017.
    """

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        weights = weights.to(updates.dtype)
        return weights / weights.sum() @ updates


def require_rule(key: str, rule: object) -> None:
    """Raises :class:`ConfigError` unless ``rule`` is of a class that can be a rule.

    >>> require_rule("aggregator", "Krum")
    Traceback (most recent call last):
    leadfl_pl.core.errors.ConfigError: aggregator must be an Aggregator such as FedAvg(), got str
    """
    if not isinstance(rule, Aggregator):
        raise ConfigError(f"{key} must be an Aggregator such as FedAvg(), got {summarise(rule)}")
    cls = type(rule)
    if cls.combine is Aggregator.combine and cls.aggregate is Aggregator.aggregate:
        raise ConfigError(f"{key} must define combine() or aggregate(), got {cls.__name__}")
    if "_modules" not in vars(rule):
        raise ConfigError(f"{cls.__name__}.__init__ must call super().__init__() first")
    if cls.forward is not Aggregator.forward:
        raise ConfigError(
            f"{cls.__name__} must define select() and combine(), which a "
            "federation calls, instead of forward()"
        )
    require_signatures(rule, Aggregator)


def check_aggregated(rule: Aggregator, result: object, n: int, d: int) -> Aggregated:
    """``result`` of the rule for updates (n, d), whose entries need not be finite.

    >>> check_aggregated(FedAvg(), Aggregated(torch.ones(2), torch.tensor([0, 7])), n=3, d=2)
    Traceback (most recent call last):
    leadfl_pl.core.errors.ConfigError: FedAvg.select() must give indices in 0 .. 2, got 0 .. 7

    Raises:
        ConfigError: it is no :class:`Aggregated`, its delta no tensor (d,) of floating dtype, or
            its selected no tensor (m,) of distinct int64 in 0 .. n - 1; names class and method.
    """
    plain = type(rule).aggregate is Aggregator.aggregate
    if not isinstance(result, Aggregated):
        raise ConfigError(
            f"{type(rule).__name__}.aggregate() must give an Aggregated(delta, selected), "
            f"got {summarise(result)}"
        )
    delta: object = result.delta
    if not (isinstance(delta, Tensor) and delta.is_floating_point() and delta.shape == (d,)):
        raise ConfigError(
            f"{type(rule).__name__}.{'combine' if plain else 'aggregate'}() must give an update of "
            f"shape ({d},) and floating dtype, got {summarise(delta)}"
        )
    check_selected(rule, result.selected, n)
    return result


def check_rule(rule: Aggregator, updates: Tensor) -> None:
    """Tries a copy of the rule on finite updates (n, d) and checks what it returns.

    Raises:
        ConfigError: see :func:`check_aggregated`; or the update has NaN or infinity.
    """
    rng = torch.Generator(updates.device).manual_seed(0)
    root_update = updates[0].clone() if rule.root_size else None
    clients = torch.arange(len(updates), device=updates.device)
    server = ServerContext(rng, root_update, updates[0].clone(), clients)
    rule = copy.deepcopy(rule).to(updates.device)
    with isolated_rng(0), remembers_only_in("its buffers", rule):
        result = rule.aggregate(updates.clone(), updates.new_ones(len(updates)), server)
    if not bool(check_aggregated(rule, result, *updates.shape).delta.isfinite().all()):
        raise ConfigError(f"{type(rule).__name__} must give a finite update, got NaN or infinity")


def check_selected(rule: Aggregator, selected: object, n: int) -> None:
    """Raises :class:`ConfigError` unless ``selected`` are distinct int64 (m,) in 0 .. n - 1."""
    plain = type(rule).aggregate is Aggregator.aggregate
    must = f"{type(rule).__name__}.{'select' if plain else 'aggregate'}() must give indices"
    if not (isinstance(selected, Tensor) and selected.dtype == torch.int64 and selected.ndim == 1):
        raise ConfigError(f"{must} of shape (m,) and dtype int64, got {summarise(selected)}")
    chosen = sorted(selected.tolist())
    if chosen and not 0 <= chosen[0] <= chosen[-1] < n:
        raise ConfigError(f"{must} in 0 .. {n - 1}, got {chosen[0]} .. {chosen[-1]}")
    if repeated := [a for a, b in pairwise(chosen) if a == b]:
        raise ConfigError(f"{must} without repetition, got {repeated[0]} more than once")


def require_byzantine(owner: str, f: int, n: int, factor: int) -> None:
    """Raises unless n >= factor * f + 3, the bound of the Krum family."""
    if n < factor * f + 3:
        raise ConfigError(
            f"{owner} needs n >= {factor}f + 3 = {factor * f + 3} updates for f = {f}, got n = {n}"
        )
