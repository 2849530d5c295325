"""The federated fit loop: an epoch is a round, a batch is a client, a step is a server step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from leadfl_pl.core.rng import derive_seed, isolated_rng
from leadfl_pl.core.values import ClientUpdate, Cohort
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.config import Federation
from leadfl_pl.federation.gather import train_cohort
from leadfl_pl.federation.server import RoundResult, Server
from leadfl_pl.federation.vectorised import choose_clients
from leadfl_pl.records.checkpoints import start_from
from leadfl_pl.trainer.callback import FederatedCallback
from leadfl_pl.trainer.checks import (
    check_methods,
    check_optimizers,
    check_run,
    check_same,
    settings,
)
from leadfl_pl.trainer.stop_on_signal import stopped_by


class ClientTask(NamedTuple):
    """The "batch" that the Trainer's hooks see: one client of a round."""

    round: int
    position: int | None  # in the cohort
    client_id: int | None  # None: this rank has no client left in this wave


class FederatedLoop(_FitLoop):
    """Runs rounds instead of epochs, on every rank of the Trainer's strategy.

    Clients of a round are assigned to the ranks in waves, gathered once, and aggregated on every
    rank in cohort order. Whenever a hook runs, the module has the global weights.

    Args:
        trainer: the Trainer that this loop belongs to.
        federation: schedule, attack, rule and server step.
        min_epochs, max_epochs: fewest and most rounds.

    Attributes:
        result: of the last round, None before the first.
    """

    clients: Clients
    server: Server

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
        self.result: RoundResult | None = None
        self._settings: dict[str, Any] = {}  # of this run, as it started
        self._attack_state: dict[str, Any] = {}  # when the last round had ended
        self._resumed: dict[str, Any] = {}  # what a checkpoint had, until the clients are there

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
        updates = self.clients.attack_updates(updates, cohort)
        self.server_step(updates, cohort)
        self.evaluate()

    def train(self, cohort: Cohort) -> list[ClientUpdate]:
        """What the cohort's clients send; each of this rank's is a batch of the Trainer's hooks."""
        self.epoch_loop.batch_progress.reset_on_run()
        self.clients.adapt_attack(cohort, self.server.last_update)
        return train_cohort(self.clients, cohort, self.server.last_update, self._client_hooks)

    def server_step(self, updates: list[ClientUpdate], cohort: Cohort) -> None:
        """Reject, aggregate, step, counted as one step of the Trainer."""
        root_update = self.clients.train_root(cohort.round)
        progress = self.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        self.result = self.server.step(updates, cohort, self.clients.vector, root_update)
        progress.increment_completed()
        self.rounds_done = cohort.round + 1
        self._attack_state = copy.deepcopy(self.clients.attack.state_dict())
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FederatedCallback):
                callback.on_server_step(self.trainer, self.clients.client, updates, self.result)

    def evaluate(self) -> None:
        """Validates the new global model, if this round is one to validate."""
        if self.epoch_loop._should_check_val_epoch():
            self.trainer.validating = True
            # dropout is on where evaluation_mode = "train"
            with isolated_rng(derive_seed(self.clients.seed, "evaluation", self.rounds_done)):
                self.epoch_loop.val_loop.run()
            self.trainer.training = True
        self.epoch_loop._batches_that_stepped += 1

    def evaluate_again(self) -> None:
        """Evaluates for the log only: the checkpoint has the model and the counts after it."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        counted = [(c, c.state_dict()) for c in callbacks if isinstance(c, EarlyStopping)]
        evaluated = self.clients.vector.snapshot()
        self.evaluate()
        self.clients.vector.restore(evaluated)
        for callback, state in counted:
            callback.load_state_dict(state)
        if counted:
            going = EarlyStoppingReason.NOT_STOPPED
            self.trainer.should_stop = any(c.stopping_reason is not going for c, _ in counted)

    # ------------------------------------------------------------------ set-up and state

    @property
    def done(self) -> bool:
        """Whether the last round has been run, or a signal has ended the run before it."""
        return stopped_by(self.trainer) is not None or super().done

    def setup_data(self) -> None:
        """Loads and splits the data, once, and makes the rank's client tasks the "batches"."""
        if self._combined_loader is not None:
            return
        trainer, federation = self.trainer, self.federation
        device = trainer.strategy.root_device
        module, datamodule = check_run(trainer, federation)
        if self.rounds_done and not self._resumed:  # the same Trainer fits on
            self._resumed = self._state()
        self._settings = self._settings_at_start()
        datamodule.to(device)
        self.server = Server(federation, device)
        if federation.start_from is not None and not self._resumed:
            start_from(federation.start_from, module)
        check_optimizers(trainer, federation.carry_momentum)
        self.clients = choose_clients(
            self._resumed.get("execution"), module, datamodule, federation
        )
        check_methods(self.clients, datamodule.num_classes)
        self._restore(device)
        waves = -(-federation.clients_per_round // trainer.world_size)
        self._combined_loader = CombinedLoader([range(waves)], "max_size_cycle")
        self.max_batches = trainer.val_check_batch = waves

    def _restore(self, device: torch.device) -> None:
        """Goes on with a checkpoint's state, or starts without what another run has left."""
        self.clients.attack.load_state_dict(self._resumed.get("attack", {}))
        self._attack_state = copy.deepcopy(self.clients.attack.state_dict())
        if not (state := self._resumed):
            return
        self.rounds_done = state["rounds_done"]
        self.clients.momenta = dict(state["momenta"])
        if (initial := state.get("initial")) is not None:
            self.clients.initial = [w.to(device) for w in initial]
        self.server.load_state_dict(state["server"], device)
        if state["result"] is not None:
            self.result = RoundResult(**state["result"]).to(device)
        self._resumed = {}

    def reset(self) -> None:
        """Starts a round anew that a checkpoint was written in."""
        if self.rounds_done < self.epoch_progress.current.ready:
            self.epoch_loop.batch_progress.is_last_batch = (
                False  # which Lightning takes for its end
            )
        super().reset()

    def on_save_checkpoint(self) -> dict[str, Any]:
        state: dict[str, Any] = super().on_save_checkpoint()
        if not hasattr(self, "clients"):  # of a Trainer that has not fitted anything
            return state
        return state | self._state()

    def _state(self) -> dict[str, Any]:
        return {
            "rounds_done": self.rounds_done,
            "settings": self._settings,
            "execution": self.clients.execution,
            "momenta": self.clients.momenta,
            "initial": self.clients.initial,
            "server": self.server.state_dict(),
            "attack": self._attack_state,
            "result": None if self.result is None else self.result._asdict(),
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        check_run(self.trainer, self.federation)
        check_same(state_dict["settings"], self._settings_at_start())
        self._resumed = state_dict

    def _settings_at_start(self) -> dict[str, Any]:
        """Those that the attack has before round 0; its state comes later."""
        if self.federation.attack is not None:
            self.federation.attack.load_state_dict({})
        return settings(self.federation, self.trainer)

    # ------------------------------------------------------------------ plumbing

    @contextmanager
    def _client_hooks(self, cohort: Cohort, wave: int, position: int | None) -> Iterator[None]:
        client_id = None if position is None else cohort.client_ids[position]
        task = ClientTask(cohort.round, position, client_id)
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
