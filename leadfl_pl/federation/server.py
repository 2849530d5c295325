"""The server of a run: it makes one step of a round's updates, or none."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.values import ClientUpdate, Cohort
from leadfl_pl.federation.config import Aggregate, Federation
from leadfl_pl.federation.local import LocalTraining


class FailedRoundsError(RuntimeError):
    """More rounds in a row than ``max_failures`` had too few well-formed updates."""


class Server:
    """What the server remembers from round to round, and does at the end of one.

    Args:
        federation: the rule and the server's step.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.failures = 0  # rounds in a row without an aggregate
        self.last_update: Tensor | None = None  # (d,) the last step

    def aggregate(
        self, received: list[ClientUpdate], cohort: Cohort, local: LocalTraining
    ) -> Aggregate:
        """The rule's aggregate; a step of zero if too few updates are left for it.

        Raises:
            FailedRoundsError: this has happened too often.
        """
        t, theta = cohort.round, local.vector.read()
        context = self.federation.server_context(t, local.train_root(t), theta.device)
        try:
            aggregate = self.federation.aggregate(received, context)
        except ConfigError as error:
            self.failures += 1
            if self.failures > self.federation.max_failures:
                raise FailedRoundsError(
                    f"round {t}: {error}. This was the round number {self.failures} in a row "
                    f"without an aggregate, and max_failures = {self.federation.max_failures}. "
                    "Lower the learning rate, or choose a rule that needs fewer updates"
                ) from (local.last_error or error)
            rank_zero_warn(f"round {t} keeps the old model: {error}")
            return Aggregate(torch.zeros_like(theta), None, theta.new_empty(0, dtype=torch.long))
        self.failures = 0
        return aggregate

    def step(self, aggregate: Aggregate, t: int, local: LocalTraining, world_size: int) -> None:
        """Moves the global model in round ``t``, the same on every rank.

        Raises:
            FloatingPointError: it would not stay finite.
        """
        vector, delta = local.vector, aggregate.delta
        buffers = vector.read_buffers() if aggregate.buffers is None else aggregate.buffers
        theta = vector.read()
        if not bool((theta + delta).isfinite().all() & buffers.isfinite().all()):
            raise FloatingPointError(
                f"round {t}: the update that {type(self.federation.aggregator).__name__} made of "
                "finite ones is not finite. Lower the learning rate, or choose another rule"
            )
        if world_size > 1:  # equal on every rank already, but for a GPU's rounding
            for tensor in (delta, buffers):
                torch.distributed.broadcast(tensor, src=0)
        vector.write(theta + delta)
        vector.write_buffers(buffers)
        self.last_update = delta

    def state_dict(self) -> dict[str, Any]:
        """All that a run which goes on needs of it."""
        return {
            "aggregator": self.federation.aggregator.state_dict(),
            "failures": self.failures,
            "last_update": self.last_update,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Becomes the server that :meth:`state_dict` was taken from."""
        self.federation.aggregator.load_state_dict(state["aggregator"])
        self.failures = state["failures"]
        if (last_update := state["last_update"]) is not None:
            self.last_update = last_update.to(device)
