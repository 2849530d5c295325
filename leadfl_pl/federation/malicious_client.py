"""The client of an attacker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leadfl_pl.attacks import Attack
from leadfl_pl.attacks.base import overrides
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.values import LocalStep
from leadfl_pl.defenses import ClientDefense
from leadfl_pl.defenses.base import clones
from leadfl_pl.federation.client import Batch, FederatedClient


class Constrained(ClientDefense):
    """What a malicious client does after a local step: its defense, then the attack's constraint.

    Args:
        defense: of the malicious client.
        attack: as this client carries it out.
    """

    def __init__(self, defense: ClientDefense, attack: Attack) -> None:
        self.defense, self.attack = defense, attack
        self.needs_initial = defense.needs_initial

    def start(self, names: Sequence[str], params: list[Tensor]) -> Any:
        return clones(params), self.defense.start(names, params)

    def after_step(self, step: LocalStep, state: Any) -> Any:
        start, inner = state
        inner = self.defense.after_step(step, inner)
        self.attack.constrain(step.params, start, step.step, step.num_steps)
        return start, inner

    def finish(self, delta: Tensor, generator: torch.Generator) -> Tensor:
        return self.defense.finish(delta, generator)

    def regulariser(self, state: Any) -> Tensor | None:
        return self.defense.regulariser(state[1])


class MaliciousClient(FederatedClient):
    """A client that trains on what an attack makes of its batches.

    Args:
        model: the network.
        attack: makes the tasks and balances their gradients.
        defense: run by the malicious client as well, to look like an honest one; none by default.
        lr, momentum: see :class:`FederatedClient`.

    Raises:
        ConfigError: see :class:`FederatedClient`. In the fit of a plain Trainer: an attack with
            parts that only a federation calls.
    """

    def __init__(
        self,
        model: nn.Module,
        attack: Attack,
        defense: ClientDefense | None = None,
        lr: float = 0.01,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(model, defense, lr, momentum)
        self.attack = attack
        if overrides(attack, "constrain"):
            self.defense = Constrained(self.defense, attack)

    def on_train_start(self) -> None:
        unused = [m for m in ("adapt", "local", "corrupt") if overrides(self.attack, m)]
        if unused and not hasattr(self.trainer, "federation"):
            raise ConfigError(
                f"attack must not define {' or '.join(unused)}(), which a federation calls, in a "
                f"plain Trainer, got {type(self.attack).__name__}: use a FederatedTrainer"
            )
        super().on_train_start()

    def compute_gradient(self, batch: Batch, backward: Callable[[Tensor], None]) -> Tensor:
        task_losses: list[Tensor] = []
        gradients: list[list[Tensor]] = []
        for x, y in self.attack.tasks(*batch):
            loss = F.cross_entropy(self(x), y)
            gradient = torch.autograd.grad(loss, self._params, materialize_grads=True)
            gradients.append(list(gradient))
            task_losses.append(loss.detach())
        losses = torch.stack(task_losses)
        weights = self.attack.balance(losses, gradients)
        total: list[Tensor] = []
        for weight, of_task in zip(weights, gradients, strict=True):
            part = torch._foreach_mul(of_task, weight)  # two parameters may share a gradient
            torch._foreach_add_(total, part) if total else total.extend(part)
        for p, g in zip(self._params, self.attack.project(total), strict=True):
            p.grad = g
        return (weights * losses).sum()
