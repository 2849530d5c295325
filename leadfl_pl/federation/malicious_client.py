"""The client of an attacker."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leadfl_pl.attacks import Attack
from leadfl_pl.defenses import ClientDefense
from leadfl_pl.federation.client import Batch, FederatedClient


class MaliciousClient(FederatedClient):
    """A client that trains on what an attack makes of its batches.

    Args:
        model: the network.
        attack: makes the tasks and balances their gradients.
        defense: run by the malicious client as well, to look like an honest one; none by default.
        lr, momentum: see :class:`FederatedClient`.
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
        for weight, scaled in zip(weights, gradients, strict=True):
            torch._foreach_mul_(scaled, weight)
        total = gradients[0]
        for scaled in gradients[1:]:
            torch._foreach_add_(total, scaled)
        for p, g in zip(self._params, self.attack.project(total), strict=True):
            p.grad = g
        return (weights * losses).sum()
