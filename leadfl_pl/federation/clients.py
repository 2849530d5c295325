"""The clients of a run: their data, what each trains as, and what the malicious ones do."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from leadfl_pl.attacks import Attack
from leadfl_pl.attacks.base import overrides
from leadfl_pl.attacks.checks import check_corrupted
from leadfl_pl.core.errors import ConfigError, where
from leadfl_pl.core.rng import derive_seed, generator, isolated_rng
from leadfl_pl.core.values import AttackerView, ClientUpdate, Cohort
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.defenses.base import clones
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.client_update import LocalTask, client_update
from leadfl_pl.federation.config import Federation
from leadfl_pl.federation.malicious_client import MaliciousClient

# of a GPU: no client is left out because memory was short; after an AcceleratorError nothing works
DEVICE_ERRORS = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
SERVER = -1  # in place of a client's id, in the seeds of the server's own training


class ClientFailed(UserWarning):
    """A client raised in its local training and is left out of the round."""


class Clients:
    """Trains the clients of a round one after the other on one module.

    :class:`~leadfl_pl.federation.vectorised.VectorisedClients` trains them at once.

    Args:
        client: the honest client, attached to a Trainer; malicious ones share its network.
        datamodule: set up, and on the device.
        federation: schedule, attack and length of the local training.
    """

    execution = "sequential"

    def __init__(
        self, client: FederatedClient, datamodule: FederatedDataModule, federation: Federation
    ) -> None:
        population = federation.population
        self.client = client
        self.federation = federation
        self.seed = population.seed
        self.attack = federation.attack or Attack()
        self.vector = ModelVector(client.model, federation.distance_space)
        self.train_set, self.batch_size = datamodule.train_set, datamodule.batch_size
        self.parts = datamodule.partition(population.num_clients, self.seed)
        self.malicious_ids = federation.schedule.draw_malicious(population)
        self.initial: list[Tensor] | None = None  # W_0 by trainable parameter, if the defense asks
        if client.defense.needs_initial:
            self.initial = clones([p for p in client.model.parameters() if p.requires_grad])
        self.momenta: dict[int, Tensor] = {}  # (m,) by client id, with carry_momentum
        self.last_error: str | None = None  # of a client that this process trained
        order = torch.randperm(len(self.train_set.labels), generator=generator(self.seed, "root"))
        self.root = order[: federation.aggregator.root_size]

    def without_attack(self) -> Clients:
        """The same clients in the same federation with no attack, none of which has trained yet."""
        clean = copy.copy(self)
        clean.federation = dataclasses.replace(self.federation, attack=None)
        clean.attack, clean.momenta, clean.last_error = Attack(), {}, None
        return clean

    def num_steps(self, client_id: int) -> int:
        """I, how many local steps the client takes in a round."""
        return self.federation.local_step_count(len(self.parts[client_id]), self.batch_size)

    def costs(self, cohort: Cohort) -> list[int]:
        """How long each client of the cohort trains, in forward and backward passes, about."""
        passes = [2 if m and self.federation.attack else 1 for m in cohort.malicious]
        return [
            self.num_steps(client_id) * count
            for client_id, count in zip(cohort.client_ids, passes, strict=True)
        ]

    def train(
        self, cohort: Cohort, positions: Sequence[int], last_update: Tensor | None
    ) -> Iterator[ClientUpdate | None]:
        """The updates of the clients at ``positions`` of the cohort, each trained when asked for.

        A client that raises gives None, with a warning.

        Args:
            cohort: of the round.
            positions: which of its clients.
            last_update: the server's last step (d,), which every client has seen.
        """
        for position in positions:
            yield self.attempt(cohort, position, last_update)

    def attempt(
        self, cohort: Cohort, position: int, last_update: Tensor | None
    ) -> ClientUpdate | None:
        """The update of one client; None, with a warning, if it raises anything but GPU errors."""
        client_id = cohort.client_ids[position]
        try:
            client = self.trains_as(cohort, position, last_update)
            return client_update(client, self.vector, self.task(cohort.round, client_id))
        except (ConfigError, *DEVICE_ERRORS):
            raise
        except Exception as error:
            self.last_error = where(error)  # the exception would keep what the client computed
            message = f"client {client_id} in round {cohort.round} raised {error!r} and is left out"
            warnings.warn(message, ClientFailed, stacklevel=2)
            return None

    def adapt_attack(self, cohort: Cohort, last_update: Tensor | None) -> None:
        """Lets the attack change its state before a round with attackers, alike on every rank."""
        if not any(cohort.malicious) or not overrides(self.attack, "adapt"):
            return
        first = cohort.client_ids[cohort.malicious.index(True)]
        context = self.client.trainer.precision_plugin.train_step_context()
        with isolated_rng(derive_seed(self.seed, "adapt", cohort.round)), context:
            self.attack.adapt(self.view(cohort.round, first, last_update))
        strategy = self.client.trainer.strategy
        self.attack.load_state_dict(strategy.broadcast(self.attack.state_dict()))

    def trains_as(
        self, cohort: Cohort, position: int, last_update: Tensor | None
    ) -> FederatedClient:
        """The client as which a member of the cohort trains: an honest one, or an attacker."""
        if not cohort.malicious[position]:
            return self.client
        key = (cohort.round, cohort.client_ids[position])
        context = self.client.trainer.precision_plugin.train_step_context()
        with isolated_rng(derive_seed(self.seed, "local", *key)), context:
            attack = self.attack.local(self.view(*key, last_update))
        defense = self.client.defense if self.federation.defended_attackers else None
        return MaliciousClient.like(self.client, attack=attack, defense=defense)

    def view(self, t: int, client_id: int, last_update: Tensor | None) -> AttackerView:
        """What this malicious client knows at the start of round t."""
        last = None if last_update is None else self.vector.trainable(last_update)
        data = self.train_set.take(self.parts[client_id], self.vector.device)
        attacker = self.malicious_ids.index(client_id)
        return AttackerView(t, attacker, self.client.model, data.images, data.labels, last)

    def task(self, t: int, client_id: int) -> LocalTask:
        """What the client does in round t."""
        return LocalTask(
            self.seed,
            t,
            client_id,
            self.train_set.take(self.parts[client_id], self.vector.device),
            self.batch_size,
            self.num_steps(client_id),
            self.federation.carry_momentum,
            self.momenta.get(client_id),
            self.initial,
        )

    def train_root(self, t: int) -> Tensor | None:
        """The update (d,) of the server's own training; None for a rule that needs none."""
        if not len(self.root):
            return None
        data = self.train_set.take(self.root, self.vector.device)
        steps = self.federation.local_step_count(len(self.root), self.batch_size)
        task = LocalTask(self.seed, t, SERVER, data, self.batch_size, steps)
        return client_update(FederatedClient.like(self.client), self.vector, task).delta

    @property
    def momentum_size(self) -> int:
        """m, how many numbers of momentum a client keeps between rounds."""
        groups = self.client.trainer.optimizers[0].param_groups
        if not (self.federation.carry_momentum and any(g.get("momentum") for g in groups)):
            return 0
        return sum(p.numel() for group in groups for p in group["params"])

    def keep_momentum(self, updates: Sequence[ClientUpdate]) -> None:
        """Puts the momentum by for the clients' next round; of one that diverged, its last one."""
        for update in updates:
            if update.momentum is not None and bool(update.momentum.isfinite().all()):
                self.momenta[update.client_id] = update.momentum.to("cpu", copy=True)

    def attack_updates(self, updates: list[ClientUpdate], cohort: Cohort) -> list[ClientUpdate]:
        """The updates as they are sent, after the attack on updates.

        The attackers are given those of them that are finite.
        """
        malicious_ones = cohort.mask(updates)
        if self.federation.attack is None or not any(malicious_ones):
            return updates
        deltas = torch.stack([u.delta for u in updates])
        malicious = torch.tensor(malicious_ones, device=deltas.device)
        finite = deltas.isfinite().all(dim=1)
        if not bool((finite & malicious).any()):
            return updates
        rng = generator(self.seed, "attack", cohort.round, device=deltas.device)
        sent = deltas.clone()
        with isolated_rng(derive_seed(self.seed, "corrupt", cohort.round)):
            corrupted = self.attack.corrupt(deltas[finite], malicious[finite], rng)
        check_corrupted(self.attack, deltas[finite], malicious[finite], corrupted)
        sent[finite] = corrupted
        return [u._replace(delta=row) for u, row in zip(updates, sent, strict=True)]
