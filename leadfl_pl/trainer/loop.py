"""The federated fit loop: an epoch is a round, a batch is a client, a step is a server step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor

from leadfl_pl.core.rng import derive_seed, isolated_rng
from leadfl_pl.core.values import ClientUpdate, Cohort
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.config import Federation, round_metrics
from leadfl_pl.federation.server import Server
from leadfl_pl.federation.vectorised import local_training
from leadfl_pl.trainer.checks import check_run, check_same, settings
from leadfl_pl.trainer.strategy import deal

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class ClientTask(NamedTuple):
    """The "batch" that the Trainer's hooks see: one client of a round."""

    round: int
    position: int | None  # in the cohort
    client_id: int | None  # None: this rank has no client left in this wave


class FederatedLoop(_FitLoop):
    """Runs rounds instead of epochs, on every rank of the Trainer's strategy.

    Clients of a round are dealt out over the ranks in waves, gathered once, and aggregated on
    every rank in cohort order. Whenever a hook runs, the module has the global weights.

    Args:
        trainer: the Trainer that this loop belongs to.
        federation: schedule, attack, rule and server step.
        min_epochs, max_epochs: fewest and most rounds.
    """

    def __init__(
        self,
        trainer: Trainer,
        federation: Federation,
        min_epochs: int | None = 0,
        max_epochs: int | None = None,
    ) -> None:
        super().__init__(trainer, min_epochs=min_epochs, max_epochs=max_epochs)
        self.federation = federation
        self.rounds_done = 0
        self.server = Server(federation)
        self.momenta: dict[int, Tensor] = {}  # by client id, with carry_momentum
        self.execution: str | None = None  # of this run, once it has been chosen
        self.ends_early: Callable[[], bool] = lambda: False  # asked after every round

    # ------------------------------------------------------------------ the round

    def advance(self) -> None:
        """One round, or, resumed from a checkpoint of its evaluation, the rest of it."""
        self.epoch_loop.restarting = False
        t = self.trainer.current_epoch
        self.evaluate_again() if t < self.rounds_done else self.run_round(t)

    def run_round(self, t: int) -> None:
        """Select, train, attack, aggregate, evaluate."""
        cohort = self.federation.cohort(t)
        updates = self.train(cohort)
        updates = self.federation.corrupt(updates, cohort)
        self.server_step(updates, cohort)
        self.evaluate()

    def train(self, cohort: Cohort) -> list[ClientUpdate]:
        """Trains the cohort's clients, this rank's share here, and returns all the updates."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        hands = deal(self.local.costs(cohort), world_size)
        self.epoch_loop.batch_progress.reset_on_run()
        own = [position for position in hands[rank] if position is not None]
        self.local.prepare(cohort, own, self.server.last_update)
        rows: list[Tensor] = []
        for wave, position in enumerate(hands[rank]):
            client_id = None if position is None else cohort.client_ids[position]
            with self._client_hooks(ClientTask(cohort.round, position, client_id), wave):
                if position is None:  # the same collectives on every rank
                    rows.append(self.local.empty_row())
                else:
                    rows.append(self.local.attempt(cohort, position, self.server.last_update))
        gathered = self.trainer.strategy.all_gather(torch.stack(rows)).flatten(end_dim=-2)
        places = [position for hand in hands for position in hand]
        received = {p: row for p, row in zip(places, gathered, strict=True) if p is not None}
        return [self.local.unpack(received[p], c) for p, c in enumerate(cohort.client_ids)]

    def server_step(self, updates: list[ClientUpdate], cohort: Cohort) -> None:
        """Aggregates the well-formed updates and moves the global model."""
        vector = self.local.vector
        received = self.federation.receive(updates, cohort.round, vector.d, vector.b)
        aggregate = self.server.aggregate(received, cohort, self.local)
        progress = self.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        self.server.step(aggregate, cohort.round, self.local, self.trainer.world_size)
        progress.increment_completed()
        self.rounds_done = cohort.round + 1
        self.local.client.round_metrics = round_metrics(aggregate, cohort, received)

    def evaluate(self) -> None:
        """Validates the new global model, if this round is one to validate."""
        if self.epoch_loop._should_check_val_epoch():
            self.trainer.validating = True
            # dropout is on where evaluation_mode = "train"
            with isolated_rng(derive_seed(self.local.seed, "evaluation", self.rounds_done)):
                self.epoch_loop.val_loop.run()
            self.trainer.training = True
        self.epoch_loop._batches_that_stepped += 1

    def evaluate_again(self) -> None:
        """Evaluates for the log only: the checkpoint holds the model as evaluation left it."""
        evaluated = self.local.read_global()
        self.evaluate()
        self.local.write_global(evaluated)

    # ------------------------------------------------------------------ set-up and state

    def setup_data(self) -> None:
        """Loads and splits the data, once, and makes the rank's client tasks the "batches"."""
        if self._combined_loader is not None:
            return
        trainer, federation = self.trainer, self.federation
        module, datamodule = check_run(trainer, federation)
        datamodule.to(self._device)
        federation.aggregator.to(self._device)
        self.local = local_training(
            self.execution, module, datamodule, federation, trainer, self.momenta
        )
        self.execution = self.local.execution
        waves = -(-federation.clients_per_round // trainer.world_size)
        self._combined_loader = CombinedLoader([range(waves)], "max_size_cycle")
        self.waves = self.max_batches = waves
        trainer.val_check_batch = waves

    def on_save_checkpoint(self) -> dict[str, Any]:
        own = {
            "rounds_done": self.rounds_done,
            "settings": settings(self.federation, self.trainer),
            "execution": self.execution,
            "momenta": self.momenta,
            "round_metrics": {k: v.cpu() for k, v in self._round_metrics().items()},
        }
        return super().on_save_checkpoint() | own | self.server.state_dict()

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        check_same(state_dict["settings"], settings(self.federation, self.trainer))
        self.rounds_done = state_dict["rounds_done"]
        self.execution = state_dict["execution"]
        self.server.load_state_dict(state_dict, self._device)
        self.momenta.update(state_dict["momenta"])
        module = self.trainer.lightning_module
        if isinstance(module, FederatedClient):
            metrics = state_dict["round_metrics"]
            module.round_metrics = {k: v.to(self._device) for k, v in metrics.items()}

    def on_advance_end(self) -> None:
        """Ends the round, and the run with it if a signal asked for that."""
        super().on_advance_end()
        if self.ends_early():
            raise StopIteration

    def on_run_end(self) -> None:
        """Ends the fit; the client may go on in another Trainer."""
        super().on_run_end()
        self.local.client.round_metrics = {}

    def _round_metrics(self) -> dict[str, Tensor]:
        module = self.trainer.lightning_module
        return module.round_metrics if isinstance(module, FederatedClient) else {}

    # ------------------------------------------------------------------ plumbing

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device

    @contextmanager
    def _client_hooks(self, task: ClientTask, wave: int) -> Iterator[None]:
        trainer, progress = self.trainer, self.epoch_loop.batch_progress
        progress.is_last_batch = wave + 1 == self.max_batches
        progress.increment_ready()
        trainer._logger_connector.on_batch_start(task)
        call._call_callback_hooks(trainer, "on_train_batch_start", task, wave)
        call._call_lightning_module_hook(trainer, "on_train_batch_start", task, wave)
        progress.increment_started()
        yield
        progress.increment_processed()
        call._call_callback_hooks(trainer, "on_train_batch_end", {}, task, wave)
        call._call_lightning_module_hook(trainer, "on_train_batch_end", {}, task, wave)
        trainer._logger_connector.on_batch_end()
        progress.increment_completed()
