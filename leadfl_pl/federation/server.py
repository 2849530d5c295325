"""The server: it rejects malformed updates, aggregates the others, and moves the global model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from leadfl_pl.aggregators import Aggregated
from leadfl_pl.aggregators.base import check_aggregated
from leadfl_pl.aggregators.validation import well_formed
from leadfl_pl.core.errors import ConfigError, errors_of
from leadfl_pl.core.rng import derive_seed, generator, isolated_rng
from leadfl_pl.core.values import ClientUpdate, Cohort, ServerContext
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.federation.config import Federation

NO_UPDATE = "no well-formed update"


class FailedRoundsError(RuntimeError):
    """More rounds in a row than ``max_failures`` had too few well-formed updates."""


class RoundResult(NamedTuple):
    """What became of a round."""

    client_ids: tuple[int, ...]  # the cohort
    malicious: tuple[bool, ...]  # of them, for metrics only
    sent: tuple[int, ...]  # ids of the clients whose training did not fail
    received: tuple[int, ...]  # ids of those whose updates were well-formed
    selected: tuple[int, ...]  # ids of those whose updates the rule used
    delta: Tensor  # (d,) the server's step
    loss: Tensor  # () mean training loss of the received updates
    regulariser: Tensor  # () mean penalty of the honest ones

    def to(self, device: torch.device) -> RoundResult:
        """The same on a device."""
        tensors = (self.delta, self.loss, self.regulariser)
        return RoundResult(*self[:5], *(tensor.to(device) for tensor in tensors))

    def metrics(self) -> dict[str, Tensor]:
        """What is logged of the round, by name; scalars."""
        malicious = {c for c, m in zip(self.client_ids, self.malicious, strict=True) if m}
        failed = len(self.client_ids) - len(self.sent)
        counts = {
            "round/malicious_sampled": len(malicious),
            "round/malicious_selected": len(malicious.intersection(self.selected)),
            "round/selected": len(self.selected),
            "round/rejected": len(self.sent) - len(self.received),
        } | ({"round/failed": failed} if failed else {})
        return {name: self.delta.new_tensor(count) for name, count in counts.items()} | {
            "round/update_norm": torch.linalg.vector_norm(self.delta),
            "train/loss": self.loss,
            "train/regulariser": self.regulariser,
        }


class Server:
    """What the server does with the updates of a round, and remembers from one to the next.

    Args:
        federation: the rule, of which the server takes a copy, its learning rate and what it
            tolerates.
        device: of the updates.
    """

    def __init__(self, federation: Federation, device: torch.device) -> None:
        self.federation = federation
        with errors_of(
            f"trainer.federation.aggregator = {type(federation.aggregator).__name__}, copied,"
        ):
            self.aggregator = copy.deepcopy(federation.aggregator).to(device)
        self.failures = 0  # rounds in a row without an aggregate
        self.last_update: Tensor | None = None  # (d,) the last step

    def step(
        self,
        updates: list[ClientUpdate],
        cohort: Cohort,
        vector: ModelVector,
        root_update: Tensor | None = None,
    ) -> RoundResult:
        """Reject, aggregate, step.

        Args:
            updates: as they were sent.
            cohort: of the round.
            vector: of the global model, which is moved.
            root_update: (d,) from the server's own training, for a rule that asks for it.

        Raises:
            FailedRoundsError: too few updates were well-formed, once too often.
            FloatingPointError: the model would not stay finite.
        """
        theta = vector.read()
        received = well_formed(updates, cohort.round, vector.d, vector.b)
        try:
            self.aggregator.check_enough(len(received), self.federation.clients_per_round)
        except ConfigError as error:
            self.tolerate(error, cohort.round, none=bool(updates) and not received)
            delta, selected = torch.zeros_like(theta), theta.new_empty(0, dtype=torch.long)
        else:
            self.failures = 0
            delta, selected = self.aggregate(received, cohort.round, theta, root_update)
        chosen = [received[i] for i in selected.tolist()]
        self.move(vector, theta, delta, chosen, cohort.round)
        nan = delta.new_tensor(float("nan"))
        penalties = [
            u.regulariser
            for u, malicious in zip(received, cohort.mask(received), strict=True)
            if not malicious
        ]
        return RoundResult(
            cohort.client_ids,
            cohort.malicious,
            tuple(u.client_id for u in updates),
            tuple(u.client_id for u in received),
            tuple(u.client_id for u in chosen),
            delta,
            torch.stack([u.loss for u in received]).mean() if received else nan,
            torch.stack(penalties or [delta.new_zeros(())]).mean(),
        )

    def aggregate(
        self, received: Sequence[ClientUpdate], t: int, theta: Tensor, root_update: Tensor | None
    ) -> Aggregated:
        """The server's step (d,) and which of the received updates the rule used."""
        deltas = torch.stack([u.delta for u in received])
        weights = deltas.new_tensor([u.num_examples for u in received])
        rng = generator(self.federation.population.seed, "server", t, device=deltas.device)
        clients = torch.tensor([u.client_id for u in received], device=deltas.device)
        context = ServerContext(rng, root_update, theta, clients)
        with isolated_rng(derive_seed(self.federation.population.seed, "aggregate", t)):
            result = self.aggregator.aggregate(deltas, weights, context)
        delta, selected = check_aggregated(self.aggregator, result, *deltas.shape)
        return Aggregated(self.federation.server_lr * delta, selected)

    def tolerate(self, error: ConfigError, t: int, none: bool = False) -> None:
        """Counts a round without an aggregate; ``none``: not one update was well-formed.

        Raises:
            FailedRoundsError: this has happened too often.
        """
        self.failures += 1
        if self.failures > self.federation.max_failures:
            reason = f"{NO_UPDATE if none else 'too few updates'} in round {t}: {error}"
            raise FailedRoundsError(
                f"{reason}. This was the round number {self.failures} in a row without an "
                f"aggregate, and max_failures = {self.federation.max_failures}. "
                "Lower the learning rate, or choose a rule that needs fewer updates"
            ) from error
        rank_zero_warn(f"round {t} keeps the old model: {error}")

    def move(
        self,
        vector: ModelVector,
        theta: Tensor,
        delta: Tensor,
        chosen: Sequence[ClientUpdate],
        t: int,
    ) -> None:
        """Moves the global model, the same on every rank; buffers to the mean of the chosen ones.

        Raises:
            FloatingPointError: it would not stay finite.
        """
        theta, buffers = theta + delta, vector.read_buffers()
        if chosen:
            buffers = torch.stack([u.buffers for u in chosen]).mean(dim=0)
        if not bool(theta.isfinite().all() & buffers.isfinite().all()):
            raise FloatingPointError(
                f"round {t}: the update that {type(self.aggregator).__name__} made of "
                "finite ones is not finite. Lower the learning rate, or choose another rule"
            )
        if torch.distributed.is_initialized():  # equal on all ranks, but for a GPU's rounding
            for tensor in (theta, buffers, delta):
                torch.distributed.broadcast(tensor, src=0)
        vector.write(theta)
        vector.write_buffers(buffers)
        self.last_update = delta

    def state_dict(self) -> dict[str, Any]:
        """All that a run which goes on needs of it."""
        return {
            "aggregator": self.aggregator.state_dict(),
            "failures": self.failures,
            "last_update": self.last_update,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Becomes the server that :meth:`state_dict` was taken from."""
        self.aggregator.load_state_dict(state["aggregator"])
        self.failures = state["failures"]
        if (last_update := state["last_update"]) is not None:
            self.last_update = last_update.to(device)
