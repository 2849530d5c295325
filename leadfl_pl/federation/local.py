"""Local training: one client of a round, from the global weights to its update."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from leadfl_pl.attacks import Attack
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.rng import derive_seed, generator, isolated_rng
from leadfl_pl.core.values import AttackerView, ClientUpdate, Cohort
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.data import FederatedDataModule, ImageSet
from leadfl_pl.data.base import epoch_batches
from leadfl_pl.federation.client import FederatedClient, MaliciousClient
from leadfl_pl.federation.config import Federation
from leadfl_pl.trainer.plain import is_plain

ROOT = -1  # in place of a client's id, stands for the server in the seeds of its training


class GlobalModel(NamedTuple):
    """All that local training changes of the module, to be put back after it."""

    theta: Tensor  # (d,)
    buffers: Tensor  # (b,)
    kept: list[Tensor]  # counters


class ClientFailed(UserWarning):
    """A client raised in its local training and is left out of the round."""


class LocalTraining:
    """Runs the clients of a federation one after the other on one module.

    :class:`~leadfl_pl.federation.vectorised.VectorisedTraining` runs them at once.

    An update is packed as a row (d + b + 3,), with ``carry_momentum`` (d + b + m + 3,), so that
    the rows of several ranks can be gathered in one call.

    Args:
        client: the honest client; malicious ones share its network.
        datamodule: set up, and on the device.
        federation: attack and length of the local training.
        trainer: whose optimizer and precision are used.
        momenta: by client id, filled with ``carry_momentum``.
    """

    execution = "sequential"

    def __init__(
        self,
        client: FederatedClient,
        datamodule: FederatedDataModule,
        federation: Federation,
        trainer: Trainer,
        momenta: dict[int, Tensor],
    ) -> None:
        self.client = client
        self.federation = federation
        self.trainer = trainer
        self.momenta = momenta
        self.last_error: Exception | None = None  # of a client of this rank
        self.seed = federation.seed or 0
        self.vector = ModelVector(client.model, federation.measure)
        self.row_dtype = torch.promote_types(self.vector.dtype, torch.float32)
        self.train_set, self.batch_size = datamodule.train_set, datamodule.batch_size
        self.parts = datamodule.partition(federation.num_clients, self.seed)
        self.malicious_ids = federation.schedule.draw_malicious(federation.population)
        self.attack = federation.attack or Attack()
        defense = client.defense if federation.defended_attackers else None
        model, lr, momentum = client.model, client.lr, client.momentum
        self.malicious_client = MaliciousClient(model, self.attack, defense, lr, momentum)
        self.server_client = FederatedClient(model, lr=lr, momentum=momentum)
        self.malicious_client.trainer = self.server_client.trainer = trainer
        order = torch.randperm(len(self.train_set.labels), generator=generator(self.seed, "root"))
        self.root = order[: federation.aggregator.root_size]

    def costs(self, cohort: Cohort) -> list[int]:
        """How long each client of the cohort trains, in forward and backward passes, about."""
        federation = self.federation
        costs = []
        for client_id, is_malicious in zip(cohort.client_ids, cohort.malicious, strict=True):
            steps = -(-len(self.parts[client_id]) // self.batch_size)
            steps = federation.local_steps or steps * (federation.local_epochs or 1)
            costs.append(steps * (2 if is_malicious and federation.attack else 1))
        return costs

    def prepare(self, cohort: Cohort, positions: Sequence[int], last_update: Tensor | None) -> None:
        """Called before the clients at ``positions`` of the cohort, this rank's, are trained."""

    def attempt(self, cohort: Cohort, position: int, last_update: Tensor | None) -> Tensor:
        """:meth:`train`, or, if the client raises, an empty row, which the door rejects."""
        try:
            return self.train(cohort, position, last_update)
        except ConfigError:
            raise
        except Exception as error:
            self.last_error = error
            client = f"client {cohort.client_ids[position]} in round {cohort.round}"
            warnings.warn(f"{client} raised {error!r} and is left out", ClientFailed, stacklevel=2)
            return self.empty_row()

    def train(self, cohort: Cohort, position: int, last_update: Tensor | None) -> Tensor:
        """Trains the client at ``position`` of the cohort and returns its packed update.

        The module has the global weights again when this returns, or raises. ``last_update`` is
        the server's last step (d,), which every client has seen.
        """
        t, client_id = cohort.round, cohort.client_ids[position]
        data = self.train_set.take(self.parts[client_id], self.vector.device)
        if not cohort.malicious[position]:
            return self._train(self.client, data, t, client_id)
        self.malicious_client.attack = self.local_attack(data, t, client_id, last_update)
        return self._train(self.malicious_client, data, t, client_id)

    def local_attack(
        self, data: ImageSet, t: int, client_id: int, last_update: Tensor | None
    ) -> Attack:
        """The attack as this malicious client carries it out in round t."""
        last = None if last_update is None else self.vector.trainable(last_update)
        attacker = self.malicious_ids.index(client_id)
        view = AttackerView(t, attacker, self.client.model, data.images, data.labels, last)
        return self.attack.local(view)

    def train_root(self, round: int) -> Tensor | None:
        """The update (d,) of the server's own training; None for a rule that needs none."""
        if not len(self.root):
            return None
        data = self.train_set.take(self.root, self.vector.device)
        return self._train(self.server_client, data, round, ROOT)[: self.vector.d]

    def _train(self, client: FederatedClient, data: ImageSet, t: int, client_id: int) -> Tensor:
        order = generator(self.seed, "order", t, client_id)
        optimizer = self.trainer.optimizers[0]
        optimizer.state.clear()
        if (momentum := self.momenta.get(client_id)) is not None:
            write_momentum(optimizer, momentum)
        start = self.read_global()
        try:
            client.plain_steps = is_plain(self.trainer, client)
            own = isolated_rng(derive_seed(self.seed, "client", t, client_id))
            with own, self.trainer.precision_plugin.train_step_context():
                client.start_round(derive_seed(self.seed, "noise", t, client_id))
                batches = self._batches(client, data, order)
                for i, batch in enumerate(itertools.islice(batches, self.federation.local_steps)):
                    client.training_step(batch, i)
            delta, loss, regulariser = client.finish_round(self.vector.read() - start.theta)
            carried = read_momentum(optimizer) if self.federation.carry_momentum else None
            return self.pack(len(data.labels), delta, carried, loss, regulariser)
        finally:
            client.plain_steps = False
            self.write_global(start)
            optimizer.zero_grad()

    def pack(
        self, size: int, delta: Tensor, momentum: Tensor | None, loss: Tensor, regulariser: Tensor
    ) -> Tensor:
        """The row of a client whose buffers the module has; momentum only where it is carried."""
        row = [delta, self.vector.read_buffers(), *([] if momentum is None else [momentum])]
        row += [v.reshape(1) for v in (torch.tensor(size, device=delta.device), loss, regulariser)]
        return torch.cat([v.to(self.row_dtype) for v in row])

    def empty_row(self) -> Tensor:
        """What a rank without a client sends, or for one that failed; as long as an update."""
        vector = self.vector
        m = 0
        if self.federation.carry_momentum and self.client.momentum:
            m = sum(p.numel() for p in self.client.model.parameters() if p.requires_grad)
        length = vector.d + vector.b + m + 3
        return torch.zeros(length, dtype=self.row_dtype, device=vector.device)

    def _batches(
        self, client: FederatedClient, data: ImageSet, order: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        epochs = self.federation.local_epochs
        for _ in itertools.count() if epochs is None else range(epochs):
            client.start_epoch()
            for batch in epoch_batches(data, self.batch_size, order):
                yield self.trainer.precision_plugin.convert_input(batch)

    def unpack(self, row: Tensor, client_id: int) -> ClientUpdate:
        """The update in a packed row; its momentum is put by for the client's next round."""
        d, b = self.vector.d, self.vector.b
        size, loss, regulariser = row[-3:]
        momentum = row[d + b : -3]
        if self.federation.carry_momentum and size > 0 and bool(momentum.isfinite().all()):
            self.momenta[client_id] = momentum.cpu()  # else it failed: it keeps its last one
        return ClientUpdate(client_id, row[:d], row[d : d + b], int(size), loss, regulariser)

    def read_global(self) -> GlobalModel:
        """A copy of the module's state."""
        v = self.vector
        return GlobalModel(v.read(), v.read_buffers(), v.read_kept())

    def write_global(self, state: GlobalModel) -> None:
        """Puts back what :meth:`read_global` gave."""
        self.vector.write(state.theta)
        self.vector.write_buffers(state.buffers)
        self.vector.write_kept(state.kept)


def read_momentum(optimizer: Optimizer) -> Tensor:
    """The optimizer's momentum buffers as one vector (m,), empty without momentum."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    found = [optimizer.state.get(p, {}).get("momentum_buffer") for p in params]
    if all(buffer is None for buffer in found):
        return torch.empty(0, device=params[0].device)
    pairs = zip(params, found, strict=True)
    return torch.cat([(torch.zeros_like(p) if m is None else m).reshape(-1) for p, m in pairs])


def write_momentum(optimizer: Optimizer, vector: Tensor) -> None:
    """Puts back what :func:`read_momentum` gave."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if vector.numel():
        for p, part in zip(params, vector.split([p.numel() for p in params]), strict=True):
            optimizer.state[p]["momentum_buffer"] = part.view_as(p).to(p, copy=True)
