"""Which execution a run takes, and what cannot be vectorised."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.config import Federation
from leadfl_pl.federation.local import LocalTraining
from leadfl_pl.federation.vectorised.model import StackedModel
from leadfl_pl.federation.vectorised.training import VectorisedTraining

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

KEY = "trainer.federation.execution"
STEPS = 3  # local steps of a trial
REPEATS = 3
LONG = 1.0  # s
OWN_STEP = (
    "forward", "training_step", "compute_gradient", "start_round", "start_epoch", "finish_round",
    "mean_loss", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "optimizer_step", "optimizer_zero_grad", "backward",
    "manual_backward",
)  # fmt: skip
STEP_HOOKS = [name for name in OWN_STEP if hasattr(Callback, name)]


def local_training(
    chosen: str | None,
    client: FederatedClient,
    datamodule: FederatedDataModule,
    federation: Federation,
    trainer: Trainer,
    momenta: dict[int, Tensor],
) -> LocalTraining:
    """Local training as ``federation.execution`` says, or as it was ``chosen`` before.

    ``"auto"`` lets rank 0 measure, unless the choice has been made: bits depend on it.

    Args:
        chosen: in a checkpoint's run, None in a new one.
        client, datamodule, federation, trainer, momenta: see
            :class:`~leadfl_pl.federation.local.LocalTraining`.

    Raises:
        ConfigError: ``"vectorised"``, and something cannot be vectorised.
    """
    sequential = LocalTraining(client, datamodule, federation, trainer, momenta)
    execution = chosen or federation.execution
    if execution == "sequential":
        return sequential
    together = VectorisedTraining(client, datamodule, federation, trainer, momenta)
    if execution == "auto":
        reason = ""
        if trainer.is_global_zero:
            execution, reason = measure(together)
        execution = trainer.strategy.broadcast(execution)
        rank_zero_info(f"{KEY} = auto: {execution}, {reason}")
    else:
        check_vectorisable(together)
    return together if execution == "vectorised" else sequential


def check_vectorisable(local: LocalTraining) -> None:
    """Raises :class:`ConfigError` if vectorised execution could not do what sequential one does."""
    client, trainer = local.client, local.trainer
    kind = type(client)
    own = [name for name in OWN_STEP if is_overridden(name, client, FederatedClient)]
    if own:
        raise _refusal(f"{kind.__name__} overrides {own[0]}(), which would not be called")
    for callback in getattr(trainer, "callbacks", ()):
        hooks = [name for name in STEP_HOOKS if is_overridden(name, callback, Callback)]
        if hooks:
            raise _refusal(
                f"{type(callback).__name__} overrides {hooks[0]}(), which would not be called"
            )
    optimizer = trainer.optimizers[0]
    optimizer = getattr(optimizer, "optimizer", optimizer)
    settings = optimizer.param_groups[0]
    plain = all(not settings.get(k) for k in ("weight_decay", "dampening", "nesterov", "maximize"))
    if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) > 1 or not plain:
        raise _refusal("the optimizer must be SGD with a learning rate and momentum, nothing else")
    _check_model(local)


def _check_model(local: LocalTraining) -> None:
    """Runs the network once under vmap."""
    model, data = local.client.model, local.train_set
    count = min(local.batch_size, *(len(part) for part in local.parts))
    batch = data.take(torch.arange(max(count, 2)), local.vector.device)
    stack = StackedModel(model, 2)
    inside: list[str] = []
    try:
        with (
            local.trainer.precision_plugin.train_step_context(),
            _names(model, inside),
        ):
            x, y = local.trainer.precision_plugin.convert_input(tuple(batch))
            stack.gradients([slice(0, 2)], torch.stack([x, x]), torch.stack([y, y]))
    except RuntimeError as error:
        name = inside[-1] if inside else ""
        where = f"{name} ({type(model.get_submodule(name)).__name__})" if name else "the network"
        if "randomness" in str(error):
            raise _refusal(f"{where} draws random numbers, other ones than alone") from error
        raise _refusal(f"{where} does not run under torch.vmap: {error}") from error


@contextmanager
def _names(model: nn.Module, inside: list[str]) -> Iterator[None]:
    """Keeps the names of the modules that are running, outermost first, also after a raise."""
    hooks = []
    for name, module in model.named_modules():

        def enter(_: nn.Module, __: object, name: str = name) -> None:
            inside.append(name)

        def leave(*_: object) -> None:
            inside.pop()

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refusal(reason: str) -> ConfigError:
    return ConfigError(f"{KEY} must be sequential, because {reason}; got execution = vectorised")


def measure(together: VectorisedTraining) -> tuple[str, str]:
    """The faster execution of this rank's clients, and why.

    Times a few local steps of one client, and as many of all clients at once, on the network and
    with the batch size of the run. No draw of the run and no weight is moved.
    """
    try:
        check_vectorisable(together)
    except ConfigError as error:
        return "sequential", str(error)
    federation, world_size = together.federation, together.trainer.world_size
    trial = copy.copy(together)
    trial.federation = dataclasses.replace(federation, local_epochs=None, local_steps=STEPS)
    cohort = federation.cohort(0)
    cohort = cohort._replace(malicious=(False,) * len(cohort.client_ids))
    positions = range(-(-len(cohort.client_ids) // world_size))
    one = _seconds(lambda: LocalTraining.train(trial, cohort, 0, None))
    try:
        together_all = _seconds(lambda: trial.train_together(cohort, positions, None))
    except RuntimeError as error:  # out of memory, or an operation that vmap does not have
        return "sequential", f"vectorised training raised {error}"
    ratio = one * len(positions) / together_all
    faster = "vectorised" if ratio > 1 else "sequential"
    return faster, (
        f"a local step of {len(positions)} clients takes {1e3 * together_all / STEPS:.2f} ms at "
        f"once and {1e3 * one * len(positions) / STEPS:.2f} ms one after the other"
    )


def _seconds(run: Callable[[], object]) -> float:
    """The least of a few timings, of fewer if they take long."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    times = [once()]
    while len(times) <= REPEATS and sum(times) < LONG:
        times.append(once())
    return min(times)
