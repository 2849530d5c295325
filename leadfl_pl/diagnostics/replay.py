"""An honest client's local training of a round, once more, with somebody looking on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.values import ClientUpdate, LocalStep
from leadfl_pl.defenses import ClientDefense
from leadfl_pl.federation.client import Batch, FederatedClient
from leadfl_pl.federation.client_update import client_update
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.step_hooks import overridden_in_step

REPLAYED = ("forward", "start_round", "start_epoch", "training_step", "local_step",
            "compute_gradient", "gradient_at", "finish_round", "configure_optimizers")  # fmt: skip


class Observer:
    """Sees the local steps of a replayed client. It must draw from generators of its own."""

    def start(self, names: Sequence[str], params: list[Tensor]) -> None:
        """The round starts at the global model ``params``."""

    def gradient(self, params: list[nn.Parameter], grads: list[Tensor]) -> None:
        """The gradient g_i of a step at W_i = ``params``, with its graph for second derivatives."""

    def after_step(self, step: LocalStep) -> None:
        """The step as the defense is about to see it, whose tensors must stay as they are."""

    def finish(self, generator: torch.Generator) -> None:
        """The round is over; ``generator`` is the defense's, to be copied."""


class Observed(ClientDefense):
    """A defense that tells an observer first."""

    def __init__(self, defense: ClientDefense, observer: Observer) -> None:
        self.defense, self.observer = defense, observer
        self.needs_initial = defense.needs_initial

    def start(self, names: Sequence[str], params: list[Tensor]) -> Any:
        self.observer.start(names, params)
        return self.defense.start(names, params)

    def after_step(self, step: LocalStep, state: Any) -> Any:
        self.observer.after_step(step)
        return self.defense.after_step(step, state)

    def finish(self, delta: Tensor, generator: torch.Generator) -> Tensor:
        self.observer.finish(generator)
        return self.defense.finish(delta, generator)


class ReplayedClient(FederatedClient):
    """A client whose gradients keep their graph, for an observer that differentiates again.

    Args:
        model: the network.
        defense: of the client that is replayed.
        observer: looks on.
        lr, momentum: see :class:`~leadfl_pl.FederatedClient`.
    """

    def __init__(
        self,
        model: nn.Module,
        defense: ClientDefense,
        observer: Observer,
        lr: float = 0.01,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(model, Observed(defense, observer), lr, momentum)
        self.observer = observer

    def compute_gradient(self, batch: Batch, backward: Callable[[Tensor], None]) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        grads = torch.autograd.grad(loss, self._params, create_graph=True, materialize_grads=True)
        self.observer.gradient(self._params, list(grads))
        for p, g in zip(self._params, grads, strict=True):
            p.grad = g.detach()
        return loss.detach()

    def gradient_at(
        self, batch: Batch, backward: Callable[[Tensor], None], params: list[Tensor]
    ) -> list[Tensor]:
        observer, self.observer = self.observer, Observer()  # this is no gradient of a step
        try:
            return super().gradient_at(batch, backward, params)
        finally:
            self.observer = observer


def replay(clients: Clients, t: int, client_id: int, observer: Observer) -> ClientUpdate:
    """The update of an honest client in round t, to the bit, which an observer sees come about.

    Args:
        clients: of the run, whose network has the global weights of the round's start, and has
            them again afterwards.
        t, client_id: whose update.
        observer: looks on.
    """
    settings = {"defense": clients.client.defense, "observer": observer}
    client = ReplayedClient.like(clients.client, **settings)
    return client_update(client, clients.vector, clients.task(t, client_id))


def require_replayable(owner: str, trainer: Any, client: FederatedClient) -> None:
    """Raises :class:`ConfigError` unless one process has all clients and replays what they do."""
    if trainer.world_size > 1:
        raise ConfigError(f"{owner} needs one process, got {trainer.world_size}: devices = 1")
    for name in REPLAYED:
        if getattr(type(client), name, None) is not getattr(FederatedClient, name):
            raise ConfigError(
                f"{owner} needs a FederatedClient that leaves {name}() as it is, which a replay "
                f"would not call, got model = {type(client).__name__}"
            )
    if overridden := overridden_in_step(client):
        raise ConfigError(f"{owner} needs local steps that a replay can repeat, but {overridden}")
