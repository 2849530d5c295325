"""A3FL: a trigger that the attackers optimise against a model which unlearns it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leadfl_pl.attacks.backdoor import PatternBackdoor
from leadfl_pl.attacks.base import Task
from leadfl_pl.core.errors import require_number, require_numbers
from leadfl_pl.core.values import AttackerView

BATCH = 64  # images of a step
LARGEST_SIDE = 1000  # pixels


def cosine(first: nn.Module, second: nn.Module) -> Tensor:
    """Cosine similarity () of the parameters of two models."""
    a, b = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (first, second))
    return F.cosine_similarity(a, b, dim=0)


class A3FL(PatternBackdoor):
    r"""The pixels of the trigger are optimised in every round with attackers, before they train.

    With the global model :math:`\theta_t`, the trigger :math:`\Delta` stamped on the images x of
    an attacker, and the target class y*, ``steps`` times

    .. math::
        \Delta \leftarrow \mathrm{clip}\big(\Delta - \beta\,\mathrm{sign}\,\nabla_\Delta [
        L(x \oplus \Delta, y^*; \theta_t) + \lambda L(x \oplus \Delta, y^*; \theta'_t)]\big),
        \qquad \lambda = \lambda_0 \cos(\theta'_t, \theta_t),

    where :math:`\theta'_t` is a copy of the global model that has unlearnt the trigger, in
    ``unlearning_steps`` steps of SGD on :math:`L(x \oplus \Delta, y; \theta')` with the true
    labels y. A new copy is made every ``every`` steps. So the trigger is made to outlast the
    training of honest clients.

    The first attacker of a round optimises on its data, for all of them. The trigger is part of the
    run's state; evaluation uses the latest one.

    Args:
        target, balance, backdoor_weight, position: see :class:`~leadfl_pl.PatternBackdoor`.
        size: rows and columns of the trigger.
        high, low: range of its pixels, in the scale of the images; it starts in the middle.
        steps: of the trigger in a round.
        step_size: beta, in the scale of the images.
        adversarial_weight: lambda_0; 0 optimises for the global model alone.
        every: trigger steps between two copies.
        unlearning_steps: of a copy.
        unlearning_lr: their learning rate.

    Raises:
        ConfigError: a setting out of range; the trigger does not fit the image; no such class.

    References:
        Zhang, Jia, Chen, Lin, Wu. A3FL: Adversarially Adaptive Backdoor Attacks to Federated
        Learning. NeurIPS 2023.

    Differences:
        1. The authors' code takes for cos the similarity of the two models' last gradients in
           convolutions; here it is that of the parameters, as in the paper.
        2. The authors' code takes 200 passes over an attacker's data a round and a new copy in
           each, trained with momentum 0.9 and weight decay; the defaults here are 50 steps, a copy
           every 10, and plain SGD.
        3. The paper poisons a share of each batch; here a malicious client uses its whole batch
           twice, triggered and clean, as :class:`~leadfl_pl.PatternBackdoor` does.
    """

    def __init__(
        self,
        target: int = 8,
        balance: Literal["mgda", "fixed"] = "mgda",
        backdoor_weight: float = 0.5,
        position: tuple[int, int] = (2, 2),
        size: tuple[int, int] = (3, 3),
        high: float = 1.0,
        low: float = 0.0,
        steps: int = 50,
        step_size: float = 0.02,
        adversarial_weight: float = 1.0,
        every: int = 10,
        unlearning_steps: int = 10,
        unlearning_lr: float = 0.01,
    ) -> None:
        require_numbers("A3FL", "size", size, least=1, most=LARGEST_SIDE, length=2)
        for key, count in (("steps", steps), ("every", every)):
            require_number("A3FL", key, count, least=1, whole=True)
        require_number("A3FL", "unlearning_steps", unlearning_steps, least=0, whole=True)
        require_number("A3FL", "adversarial_weight", adversarial_weight, least=0)
        for key, rate in (("step_size", step_size), ("unlearning_lr", unlearning_lr)):
            require_number("A3FL", key, rate, above=0)
        pattern = [[1] * size[1]] * size[0]
        super().__init__(target, balance, backdoor_weight, position, high, low, pattern)
        require_number("A3FL", "high", high, above=low)
        self.size, self.steps, self.step_size = size, steps, step_size
        self.adversarial_weight, self.every = adversarial_weight, every
        self.unlearning_steps, self.unlearning_lr = unlearning_steps, unlearning_lr
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        return {"trigger": self._values.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        middle = torch.full(self._mask.shape, (self.high + self.low) / 2)
        self._values = state.get("trigger", middle).to(self._mask.device)  # (h, w) or (C, h, w)

    def adapt(self, view: AttackerView) -> None:
        self._mask = self._mask.clone()  # an inference tensor where evaluation has moved it
        model = copy.deepcopy(view.model).eval().requires_grad_(False)
        dtype = next(p.dtype for p in model.parameters())
        images = view.images.to(dtype)
        batches = cycle(zip(images.split(BATCH), view.labels.split(BATCH), strict=True))
        shape = (images.shape[1], *self._mask.shape)
        trigger = self._values.to(images).expand(shape).clone()
        weighted: list[tuple[Tensor | float, nn.Module]] = [(1.0, model)]
        for step in range(self.steps):
            if self.adversarial_weight and step % self.every == 0:
                self._values = trigger
                adversary = self.unlearned(view.model, batches)
                weighted[1:] = [(self.adversarial_weight * cosine(adversary, model), adversary)]
            self._values = trigger.requires_grad_()
            x, y = next(batches)
            stamped, target = self.stamp(x), torch.full_like(y, self.target)
            losses = [weight * F.cross_entropy(m(stamped), target) for weight, m in weighted]
            (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), trigger)
            trigger = trigger.detach() - self.step_size * gradient.sign()
            trigger = trigger.clamp(self.low, self.high)
        self._values = trigger

    def unlearned(self, model: nn.Module, batches: Iterator[Task]) -> nn.Module:
        """A copy of the model that was trained to give triggered images their true labels."""
        adversary = copy.deepcopy(model).train()
        params: list[Tensor] = [p for p in adversary.parameters() if p.requires_grad]
        for _ in range(self.unlearning_steps):
            x, y = next(batches)
            loss = F.cross_entropy(adversary(self.stamp(x)), y)
            gradients = torch.autograd.grad(loss, params, materialize_grads=True)
            with torch.no_grad():
                torch._foreach_add_(params, gradients, alpha=-self.unlearning_lr)
        return adversary.eval().requires_grad_(False)
