"""Steps that transform the updates before a rule sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from leadfl_pl.aggregators.base import Aggregated, Aggregator, check_aggregated
from leadfl_pl.core.errors import ConfigError, summarise
from leadfl_pl.core.growing_buffers import GrowingBuffers
from leadfl_pl.core.values import ServerContext


class PreStep(GrowingBuffers):
    """What is done to the updates of a round before any rule: (n, d) -> (n, d) in ``forward``.

    What it remembers between rounds is a buffer, as in an :class:`Aggregator`.
    """

    def check(self, n: int) -> None:
        """Raises :class:`ConfigError` if the step cannot work on ``n`` updates."""


class PreAggregation(Aggregator):
    """A rule that sees the updates through one or several steps, in their order.

    >>> import torch
    >>> from leadfl_pl import Median, NormClipping
    >>> rule = PreAggregation([NormClipping(max_norm=1.0)], Median())
    >>> rule(torch.tensor([[3.0, 4.0], [0.0, 0.5], [0.0, 0.0]]))
    tensor([0.0000, 0.5000])

    Args:
        steps: one or more, applied from the first to the last.
        rule: any rule; it keeps its memory and gets its root update.

    Raises:
        ConfigError: no step; a step or the rule needs more updates.

    Differences:
        1. ``selected`` are the clients in whose place the rule used what the steps made. Where a
           step mixes updates, others have weight in it as well, attackers included.

    References:
        Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan. Fixing by Mixing: A Recipe for
        Optimal Byzantine ML under Heterogeneity. AISTATS 2023 (pre-aggregation).
    """

    def __init__(self, steps: Sequence[PreStep], rule: Aggregator) -> None:
        super().__init__()
        if not steps:
            raise ConfigError("PreAggregation: steps must be one or more steps, got steps = []")
        self.steps = nn.ModuleList(steps)
        self.rule = rule
        self.root_size = rule.root_size

    def check(self, n: int) -> None:
        for step in cast("Sequence[PreStep]", self.steps):
            step.check(n)
        self.rule.check(n)

    def check_size(self, d: int) -> None:
        self.rule.check_size(d)

    def transform(self, updates: Tensor) -> Tensor:
        """The updates (n, d) as the rule sees them."""
        for step in self.steps:
            transformed = step(updates)
            if not isinstance(transformed, Tensor) or transformed.shape != updates.shape:
                raise ConfigError(
                    f"{type(step).__name__}.forward() must give updates of shape "
                    f"{tuple(updates.shape)}, got {summarise(transformed)}"
                )
            updates = transformed
        return updates

    def select(self, updates: Tensor) -> Tensor:
        return self.rule.select(self.transform(updates))

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        result = self.rule.aggregate(self.transform(updates), weights, server)
        return check_aggregated(self.rule, result, *updates.shape)
