"""Which execution a run takes, and what cannot be vectorised."""

from __future__ import annotations

import copy
import dataclasses
import time
import traceback
from collections.abc import Callable

import torch
from lightning.pytorch.utilities import rank_zero_info

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.clients import DEVICE_ERRORS, Clients
from leadfl_pl.federation.config import Federation
from leadfl_pl.federation.step_hooks import step_listener
from leadfl_pl.federation.vectorised.model import StackedModel
from leadfl_pl.federation.vectorised.training import VectorisedClients

KEY = "trainer.federation.execution"
STEPS = 3  # local steps of a trial
REPEATS = 3
LONG = 1.0  # s
CLIENT_METHODS = (
    "forward", "local_step", "compute_gradient", "gradient_at", "start_round", "start_epoch",
    "finish_round", "optimizer_step", "optimizer_zero_grad",
)  # fmt: skip


def choose_clients(
    chosen: str | None,
    client: FederatedClient,
    datamodule: FederatedDataModule,
    federation: Federation,
) -> Clients:
    """The clients, in the execution that ``federation.execution`` asks for.

    ``"auto"`` lets rank 0 measure, unless the choice has been made: bits depend on it.

    Args:
        chosen: the execution of the run that goes on, None in a new one.
        client, datamodule, federation: see :class:`~leadfl_pl.federation.clients.Clients`.

    Raises:
        ConfigError: ``"vectorised"``, and something cannot be vectorised.
    """
    execution = chosen or federation.execution
    if execution == "sequential":
        return Clients(client, datamodule, federation)
    vectorised = VectorisedClients(client, datamodule, federation)
    if execution == "vectorised":
        check_vectorisable(vectorised)
        return vectorised
    reason = ""
    if client.trainer.is_global_zero:
        execution, reason = measure(vectorised)
    execution = client.trainer.strategy.broadcast(execution)
    rank_zero_info(f"{KEY} = auto: {execution}, {reason}")
    return vectorised if execution == "vectorised" else Clients(client, datamodule, federation)


def check_vectorisable(clients: VectorisedClients) -> None:
    """Raises :class:`ConfigError` if vectorised execution could not do what sequential one does."""
    client = clients.client
    kind = type(client)
    for name in CLIENT_METHODS:
        if getattr(kind, name) is not getattr(FederatedClient, name):
            raise _refusal(f"{kind.__name__} overrides {name}(), which would not be called")
    if listener := step_listener(client):
        raise _refusal(f"{listener}, which would not be called")
    optimizer = client.trainer.optimizers[0]
    optimizer = getattr(optimizer, "optimizer", optimizer)
    settings = optimizer.param_groups[0]
    plain = all(not settings.get(k) for k in ("weight_decay", "dampening", "nesterov", "maximize"))
    if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) > 1 or not plain:
        raise _refusal("the optimizer must be SGD with a learning rate and momentum, nothing else")
    trained = {id(p) for p in client.model.parameters() if p.requires_grad}
    if {id(p) for p in settings["params"]} != trained:
        raise _refusal("the optimizer must have all trainable parameters of the network")
    _check_model(clients)


def _check_model(clients: Clients) -> None:
    """Runs the network once under vmap."""
    model, precision = clients.client.model, clients.client.trainer.precision_plugin
    count = min(clients.batch_size, *(len(part) for part in clients.parts))
    batch = clients.train_set.take(torch.arange(max(count, 2)), clients.vector.device)
    stack = StackedModel(model, 2)
    try:
        with precision.train_step_context():
            x, y = precision.convert_input(tuple(batch))
            stack.gradients([slice(0, 2)], torch.stack([x, x]), torch.stack([y, y]))
    except DEVICE_ERRORS:
        raise
    except RuntimeError as error:
        names = {id(module): name for name, module in model.named_modules()}
        frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
        inside = [name for f in frames if (name := names.get(id(f.get("self"))))]
        name = f"{inside[-1]} ({type(model.get_submodule(inside[-1])).__name__})" if inside else ""
        where = name or "the network"
        if "randomness" in str(error):
            raise _refusal(f"{where} draws random numbers, other ones than alone") from error
        raise _refusal(f"{where} does not run under torch.vmap: {error}") from error


def _refusal(reason: str) -> ConfigError:
    return ConfigError(f"{KEY} must be sequential, because {reason}; got execution = vectorised")


def measure(vectorised: VectorisedClients) -> tuple[str, str]:
    """The faster execution of this rank's clients, and why.

    Times a few local steps of one client, and as many of all clients at once, on the network and
    with the batch size of the run. No draw of the run and no weight is moved.
    """
    try:
        check_vectorisable(vectorised)
    except (ConfigError, torch.OutOfMemoryError) as error:
        return "sequential", str(error)
    federation, world_size = vectorised.federation, vectorised.client.trainer.world_size
    trial = copy.copy(vectorised)
    trial.federation = dataclasses.replace(federation, local_epochs=None, local_steps=STEPS)
    cohort = federation.cohort(0)
    cohort = cohort._replace(malicious=(False,) * len(cohort.client_ids))
    positions = range(-(-len(cohort.client_ids) // world_size))
    one_by_one = len(positions) * _seconds(lambda: trial.attempt(cohort, 0, None))
    try:
        at_once = _seconds(lambda: trial.train_together(cohort, positions, None))
    except Exception as error:  # memory, an operation that vmap lacks, a client's own
        return "sequential", f"vectorised training raised {error}"
    faster = "vectorised" if at_once < one_by_one else "sequential"
    return faster, (
        f"a local step of {len(positions)} clients takes {1e3 * at_once / STEPS:.2f} ms at "
        f"once and {1e3 * one_by_one / STEPS:.2f} ms one after the other"
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
