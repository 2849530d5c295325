"""A run without its attack, beside the run."""

from __future__ import annotations

from typing import Any

import torch

from leadfl_pl.core.rng import isolated_rng
from leadfl_pl.core.vector import Snapshot
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.gather import train_cohort
from leadfl_pl.federation.server import FailedRoundsError, RoundResult, Server


class CleanTwin:
    """The run with ``trainer.federation.attack: null``, on the module of the attacked run.

    Seed, cohorts, batch orders and noise are the run's. The global model with its buffers, the
    state of the rule and of the server, and carried momenta are the twin's.

    Args:
        clients: of the run; their module has the initial model.

    Attributes:
        model: the global model.
        result: of the last round.
    """

    result: RoundResult

    def __init__(self, clients: Clients) -> None:
        self.vector = clients.vector
        self.clients = clients.without_attack()
        self.server = Server(self.clients.federation, self.vector.device)
        self.model = self.vector.snapshot()

    def run_round(self, t: int) -> None:
        """Select, train, aggregate; the module has the attacked run's model again after it.

        Raises:
            FailedRoundsError, FloatingPointError: as the server of a run by itself raises it.
        """
        cohort = self.clients.federation.cohort(t)
        attacked = self.vector.snapshot()
        try:
            self.vector.restore(self.model)
            with isolated_rng():
                updates = train_cohort(self.clients, cohort, self.server.last_update)
                root_update = self.clients.train_root(t)
                self.result = self.server.step(updates, cohort, self.vector, root_update)
            self.model = self.vector.snapshot()
        except (FailedRoundsError, FloatingPointError) as error:
            raise type(error)(f"AttackEffect, the run without the attack: {error}") from error
        finally:
            self.vector.restore(attacked)

    def state_dict(self) -> dict[str, Any]:
        """All that a twin which goes on needs of it, as tensors and plain values."""
        return {
            "model": tuple(self.model),
            "momenta": self.clients.momenta,
            "server": self.server.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Becomes the twin that :meth:`state_dict` was taken from."""
        theta, buffers, kept = state["model"]
        self.model = Snapshot(theta.to(device), buffers.to(device), [t.to(device) for t in kept])
        self.clients.momenta = dict(state["momenta"])
        self.server.load_state_dict(state["server"], device)
