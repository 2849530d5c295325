"""The federated fit loop: an epoch is a round, a batch is a client, a step is a server step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer

from leadfl_pl.attacks import Attack
from leadfl_pl.client import FederatedClient, MaliciousClient
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.data.base import epoch_batches
from leadfl_pl.federation import Aggregate, Federation
from leadfl_pl.metrics import MaliciousSelected
from leadfl_pl.rng import derive_seed, generator
from leadfl_pl.types import ClientUpdate, Cohort, ConfigError
from leadfl_pl.vector import ModelVector

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class ClientTask(NamedTuple):
    """The "batch" that the Trainer's hooks see: one client of a round."""

    round: int
    position: int  # in the cohort
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
        self.momenta: dict[int, Tensor] = {}  # by client id, with carry_momentum

    # ------------------------------------------------------------------ the round

    def advance(self) -> None:
        """One round."""
        self.epoch_loop.restarting = False
        t = self.trainer.current_epoch
        if t < self.rounds_done:  # resumed from a checkpoint that was written during evaluation
            return self.evaluate_again()
        cohort = self.federation.cohort(t)
        updates = self.train(cohort)
        updates = self.federation.corrupt(updates, cohort)
        aggregate = self.federation.aggregate(updates)
        self.server_step(aggregate, cohort, updates)
        self.evaluate()

    def train(self, cohort: Cohort) -> list[ClientUpdate]:
        """Trains the cohort's clients, this rank's share here, and returns all the updates."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        n = len(cohort.client_ids)
        self.epoch_loop.batch_progress.reset_on_run()
        rows: list[Tensor] = []
        for wave in range(self.waves):
            position = wave * world_size + rank
            client_id = cohort.client_ids[position] if position < n else None
            with self._client_hooks(ClientTask(cohort.round, position, client_id), wave):
                if client_id is None:  # the same collectives on every rank
                    rows.append(torch.zeros_like(rows[-1]))
                else:
                    rows.append(self.train_client(cohort, position))
        gathered = self.trainer.strategy.all_gather(torch.stack(rows))  # (world_size, waves, .)
        if world_size > 1:
            rows = list(gathered.transpose(0, 1).flatten(0, 1))
        return [self._unpack(row, c) for row, c in zip(rows, cohort.client_ids, strict=False)]

    def train_client(self, cohort: Cohort, position: int) -> Tensor:
        """Local training of one client from the global model; its update, packed as a row."""
        t, client_id = cohort.round, cohort.client_ids[position]
        client = self.malicious_client if cohort.malicious[position] else self.client
        seed = self.federation.seed or 0
        data = self.datamodule.train_set.take(self.parts[client_id], self._device)
        order = generator(seed, "order", t, client_id)
        start, buffers, counters = self._read_global()
        optimizer = self.trainer.optimizers[0]
        optimizer.state.clear()
        if (momentum := self.momenta.get(client_id)) is not None:
            write_momentum(optimizer, momentum)
        try:
            with isolate_rng(), self.trainer.precision_plugin.train_step_context():
                torch.manual_seed(derive_seed(seed, "client", t, client_id))
                client.start_round(derive_seed(seed, "noise", t, client_id))
                batches = self._local_batches(client, data, order)
                for i, batch in enumerate(itertools.islice(batches, self.federation.local_steps)):
                    client.training_step(batch, i)
            delta, loss, regulariser = client.finish_round(self.vector.read() - start)
            size = torch.tensor(len(data.labels), device=delta.device)
            tail = torch.stack([v.to(delta.dtype) for v in (size, loss, regulariser)])
            row = [delta, self.vector.read_buffers()]
            if self.federation.carry_momentum:
                row.append(read_momentum(optimizer).to(delta.dtype))
            return torch.cat([*row, tail])
        finally:
            self._write_global(start, buffers, counters)
            optimizer.zero_grad()

    def _local_batches(
        self, client: FederatedClient, data: Any, order: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        epochs = self.federation.local_epochs
        for _ in itertools.count() if epochs is None else range(epochs):
            client.start_epoch()
            yield from epoch_batches(data, self.datamodule.batch_size, order)

    def server_step(
        self, aggregate: Aggregate, cohort: Cohort, updates: list[ClientUpdate]
    ) -> None:
        """Moves the global model, after making sure that it stays finite."""
        t = cohort.round
        if not bool(aggregate.delta.isfinite().all()):
            bad = [u.client_id for u in updates if not bool(u.delta.isfinite().all())]
            raise FloatingPointError(
                f"round {t}: the aggregated update is not finite; the updates of clients {bad} "
                "are not. Lower the learning rate, or resume from the last checkpoint with "
                "another rule"
            )
        progress = self.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        delta, buffers = self.trainer.strategy.broadcast((aggregate.delta, aggregate.buffers))
        self.vector.write(self.vector.read() + delta)
        self.vector.write_buffers(buffers)
        progress.increment_completed()
        self.rounds_done = t + 1
        malicious = torch.tensor(cohort.malicious, device=delta.device)
        penalties = [
            u.regulariser
            for u, is_malicious in zip(updates, cohort.malicious, strict=True)
            if not is_malicious
        ] or [delta.new_zeros(())]
        self.client.round_metrics = {
            "round/malicious_sampled": malicious.sum().float(),
            "round/malicious_selected": MaliciousSelected()(aggregate.selected, malicious).float(),
            "round/update_norm": torch.linalg.vector_norm(delta),
            "train/loss": torch.stack([u.loss for u in updates]).mean(),
            "train/regulariser": torch.stack(penalties).mean(),
        }

    def evaluate(self) -> None:
        """Validates the new global model, if this round is one to validate."""
        if self.epoch_loop._should_check_val_epoch():
            self.trainer.validating = True
            self.epoch_loop.val_loop.run()
            self.trainer.training = True
        self.epoch_loop._batches_that_stepped += 1

    def evaluate_again(self) -> None:
        """Evaluates for the log only: the checkpoint holds the model as evaluation left it."""
        evaluated = self._read_global()
        self.evaluate()
        self._write_global(*evaluated)

    # ------------------------------------------------------------------ set-up and state

    def setup_data(self) -> None:
        """Loads and splits the data, once, and makes the rank's client tasks the "batches"."""
        if self._combined_loader is not None:
            return
        trainer, federation = self.trainer, self.federation
        module, datamodule = trainer.lightning_module, getattr(trainer, "datamodule", None)
        if not isinstance(module, FederatedClient):
            raise ConfigError(f"model must be a FederatedClient, got {type(module).__name__}")
        if not isinstance(datamodule, FederatedDataModule):
            raise ConfigError(
                f"data must be a FederatedDataModule, got {type(datamodule).__name__}"
            )
        self.client, self.datamodule = module, datamodule
        if federation.attack is not None:
            federation.attack.check(datamodule.image_shape, datamodule.num_classes)
        self.parts = datamodule.partition(federation.num_clients, federation.seed or 0)
        datamodule.to(self._device)
        federation.aggregator.to(self._device)
        self.vector = ModelVector(module.model, federation.measure)
        self.malicious_client = self._make_malicious(module)
        waves = -(-federation.clients_per_round // trainer.world_size)
        self._combined_loader = CombinedLoader([range(waves)], "max_size_cycle")
        self.waves = self.max_batches = waves
        trainer.val_check_batch = waves

    def _make_malicious(self, client: FederatedClient) -> FederatedClient:
        attack = self.federation.attack
        defense = client.defense if self.federation.defended_attackers else None
        malicious = MaliciousClient(
            client.model, attack or Attack(), defense, lr=client.lr, momentum=client.momentum
        )
        malicious.trainer = self.trainer
        return malicious

    def on_save_checkpoint(self) -> dict[str, Any]:
        return super().on_save_checkpoint() | {
            "rounds_done": self.rounds_done,
            "seed": self.federation.seed,
            "aggregator": self.federation.aggregator.state_dict(),
            "momenta": self.momenta,
            "round_metrics": {k: v.cpu() for k, v in self._round_metrics().items()},
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        if "rounds_done" not in state_dict:
            raise ConfigError("ckpt_path: this checkpoint was not written by a FederatedTrainer")
        if state_dict["seed"] != self.federation.seed:
            raise ConfigError(
                f"seed must be the one of the checkpoint, {state_dict['seed']}, to go on with its "
                f"run, got seed = {self.federation.seed}"
            )
        self.rounds_done = state_dict["rounds_done"]
        self.federation.aggregator.load_state_dict(state_dict["aggregator"])
        device = self.trainer.strategy.root_device
        self.momenta = {c: m.to(device) for c, m in state_dict["momenta"].items()}
        module = self.trainer.lightning_module
        if isinstance(module, FederatedClient):
            metrics = state_dict["round_metrics"]
            module.round_metrics = {k: v.to(device) for k, v in metrics.items()}

    def _round_metrics(self) -> dict[str, Tensor]:
        module = self.trainer.lightning_module
        return module.round_metrics if isinstance(module, FederatedClient) else {}

    # ------------------------------------------------------------------ plumbing

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device

    def _read_global(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.vector.read(), self.vector.read_buffers(), self.vector.read_counters()

    def _write_global(self, theta: Tensor, buffers: Tensor, counters: list[Tensor]) -> None:
        self.vector.write(theta)
        self.vector.write_buffers(buffers)
        self.vector.write_counters(counters)

    def _unpack(self, row: Tensor, client_id: int) -> ClientUpdate:
        d, b = self.vector.d, self.vector.b
        if self.federation.carry_momentum:
            self.momenta[client_id] = row[d + b : -3].clone()
        size, loss, regulariser = row[-3:]
        return ClientUpdate(client_id, row[:d], row[d : d + b], int(size), loss, regulariser)

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


def read_momentum(optimizer: Optimizer) -> Tensor:
    """The optimizer's momentum buffers as one vector (m,), empty without momentum."""
    buffers = [
        state["momentum_buffer"].reshape(-1)
        for group in optimizer.param_groups
        for p in group["params"]
        if (state := optimizer.state.get(p)) and state.get("momentum_buffer") is not None
    ]
    device = optimizer.param_groups[0]["params"][0].device
    return torch.cat(buffers) if buffers else torch.empty(0, device=device)


def write_momentum(optimizer: Optimizer, vector: Tensor) -> None:
    """Puts back what :func:`read_momentum` gave."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if vector.numel():
        for p, part in zip(params, vector.split([p.numel() for p in params]), strict=True):
            optimizer.state[p]["momentum_buffer"] = part.view_as(p).clone()
