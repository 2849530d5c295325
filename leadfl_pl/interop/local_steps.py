"""A defense that follows a training loop through the hooks of torch's optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from leadfl_pl.core.errors import ConfigError, summarise
from leadfl_pl.core.values import UncountedStep
from leadfl_pl.defenses import ClientDefense, check_update

TURN = RLock()  # torch's table of hooks must not change while another thread goes through it


class ObservedStep(UncountedStep):
    """A local step as an optimizer's hooks show it; what they do not show raises when asked for."""

    @property
    def num_steps(self) -> int:
        told: int | None = self._asdict()["num_steps"]()
        return super().num_steps if told is None else told

    @property
    def epoch_start(self) -> bool:
        if self.step == 0:
            return True
        raise ConfigError(
            "the defense must not ask where local epochs start, as released formulations do: the "
            "hooks of an optimizer do not tell"
        )


def require_hooked_defense(owner: str, defense: object) -> None:
    """Raises :class:`ConfigError` unless :class:`LocalSteps` may call ``defense``."""
    if not isinstance(defense, ClientDefense):
        raise ConfigError(
            f"{owner}.defense must be a ClientDefense such as LeadFL(), got {summarise(defense)}"
        )
    if defense.needs_initial:
        raise ConfigError(
            f"{owner}.defense must not need the run's initial model, which a client may never "
            f"have seen, got {type(defense).__name__}"
        )


class LocalSteps:
    """Calls a defense after every step that an optimizer takes in this thread.

    Args:
        owner: the name that its errors begin with.
        defense: any that does not need the initial model of the run.
        shapes: of the model's parameters, by name, in the order of the model.
        num_steps: I, how many steps there will be; None: not known.
        noise_seed: of the defense's noise.
        estimated: ``num_steps`` may be wrong as long as the defense does not ask for it.
    """

    def __init__(
        self,
        owner: str,
        defense: ClientDefense,
        shapes: dict[str, torch.Size],
        num_steps: int | None,
        noise_seed: int,
        estimated: bool = False,
    ) -> None:
        self.owner = owner
        self.defense = defense
        self.shapes = shapes
        self.num_steps = num_steps
        self.must_take_them = not estimated
        self.noise_seed = noise_seed
        self.thread = get_ident()
        self.taken = 0  # steps
        self.params: list[Tensor] = []  # with their gradients
        self.in_defense = False

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Within it, the steps are followed; clients in other threads wait for its end."""
        with TURN:
            hooks = [
                register_optimizer_step_pre_hook(self.before_step),
                register_optimizer_step_post_hook(self.after_step),
            ]
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()

    def before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if self.in_defense or get_ident() != self.thread:
            return
        params, names = trainable(optimizer)
        if not self.params:
            self.start(optimizer, params, names)
        elif list(map(id, params)) != list(map(id, self.params)):
            raise ConfigError(f"{self.owner} follows one optimizer a client, got a second one")

    def start(self, optimizer: Optimizer, params: list[Tensor], names: Sequence[str]) -> None:
        """Before the first step: the parameters are the global model's."""
        if isinstance(optimizer, LBFGS):
            raise ConfigError(
                f"{self.owner} needs an optimizer that takes one gradient a step, such as SGD, "
                "got LBFGS"
            )
        if not names and [p.shape for p in params] != list(self.shapes.values()):
            raise ConfigError(
                f"{self.owner} cannot tell the names of the optimizer's {len(params)} tensors "
                f"among the model's {len(self.shapes)}: give the optimizer model.named_parameters()"
            )
        self.params = params
        self.names = names or list(self.shapes)
        self.data = [p.detach() for p in params]
        self.generator = torch.Generator(params[0].device).manual_seed(self.noise_seed)
        self.state = self.defense.start(self.names, self.data)

    def after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if self.in_defense or get_ident() != self.thread:
            return
        lr, *others = {float(group["lr"]) for group in optimizer.param_groups}
        if others:
            raise ConfigError(
                f"{self.owner} needs one learning rate for all parameters, got {lr} and {others[0]}"
            )
        step = ObservedStep(
            names=self.names,
            params=self.data,
            grads=[torch.zeros_like(p) if p.grad is None else p.grad for p in self.params],
            lr=lr,
            step=self.taken,
            num_steps=self.told_steps,  # type: ignore[arg-type]
            epoch_start=self.taken == 0,
            optimizer_step=optimizer.step,
            generator=self.generator,
            gradient_at=self.refuse_gradient,
        )
        self.in_defense = True
        try:
            with torch.no_grad():
                self.state = self.defense.after_step(step, self.state)
        finally:
            self.in_defense = False
        self.taken += 1

    def told_steps(self) -> int | None:
        """I, when the defense asks for it."""
        self.must_take_them = True
        return self.num_steps

    def refuse_gradient(self, params: list[Tensor]) -> list[Tensor]:
        raise ConfigError(
            f"{self.owner}.defense must ask for no gradient at other parameters, "
            f"got {type(self.defense).__name__}"
        )

    def finish(self, delta: Tensor) -> Tensor:
        """The update (d,) to send, given the one that training gave.

        Raises:
            ConfigError: the loop took no step, or others than ``num_steps``.
        """
        if not self.taken:
            raise ConfigError(
                f"{self.owner} saw no step of a torch optimizer in the thread of the client"
            )
        if self.must_take_them and self.num_steps not in (None, self.taken):
            raise ConfigError(
                f"{self.owner}.num_steps must be {self.taken}, which is how many steps the "
                f"optimizer took, got num_steps = {self.num_steps}"
            )
        sent = self.defense.finish(delta.to(self.generator.device, copy=True), self.generator)
        check_update(self.defense, delta, sent)
        return sent.to(delta.device)


def trainable(optimizer: Optimizer) -> tuple[list[Tensor], list[str]]:
    """The tensors that an optimizer trains, and their names, empty where it was given none."""
    params: list[tuple[Tensor, Any]] = []
    for group in optimizer.param_groups:
        names = group.get("param_names", [None] * len(group["params"]))
        params += [(p, n) for p, n in zip(group["params"], names, strict=True) if p.requires_grad]
    return [p for p, _ in params], [n for _, n in params if n is not None]
