"""How many processes and threads train a federation, and with which strategy."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.accelerators import (
    Accelerator,
    AcceleratorRegistry,
    CPUAccelerator,
    MPSAccelerator,
)
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from leadfl_pl.core.errors import LARGEST, ConfigError
from leadfl_pl.trainer.strategy import FederatedStrategy

PORT = 29400  # torchrun's


def with_processes(kwargs: dict[str, Any], clients: int) -> dict[str, Any]:
    """The arguments of a Trainer with ``devices``, ``num_nodes`` and ``strategy`` decided.

    ``accelerator="auto"`` is the CPU on a Mac.

    Under torchrun or srun there are as many processes as these have started. Otherwise
    ``devices="auto"`` is the fewest that train the round in as little time as all cores or GPUs
    can: the processes that Lightning starts come to the same number.

    Args:
        kwargs: of a Trainer.
        clients: in a round.

    Raises:
        ConfigError: this machine, the launcher or the federation has not that many, or the
            strategy would mix clients' gradients.
    """
    accelerator, strategy = kwargs.get("accelerator"), kwargs.get("strategy")
    kind = accelerator_class("auto" if accelerator is None else accelerator)
    if kind is MPSAccelerator:
        if accelerator not in (None, "auto"):
            raise ConfigError(
                "trainer.accelerator must be auto, cpu or cuda, as MPS has no float64, in which "
                f"rules measure distances, got accelerator = {accelerator}"
            )
        kind, kwargs = CPUAccelerator, kwargs | {"accelerator": "cpu"}
    devices, nodes = kwargs.get("devices"), kwargs.get("num_nodes") or 1
    if started := started_by_launcher():
        local, all_nodes = started
        nodes = all_nodes if nodes == 1 else nodes
        devices = local if devices in (None, "auto") else devices
        if (device_count(kind, devices), nodes) != started:
            raise ConfigError(
                f"trainer.devices must be {local} and trainer.num_nodes {all_nodes}, as many "
                "processes and nodes as torchrun or srun has started, "
                f"got devices = {devices} and num_nodes = {nodes}"
            )
    elif nodes > 1:
        check_nodes(kwargs)
    if devices in (None, "auto"):
        # without "auto" one process on a CPU: several run the caller's script from its start
        every_core = devices == "auto" and kind is CPUAccelerator and nodes == 1
        available = usable_cores() if every_core else kind.auto_device_count()
        in_notebook = hasattr(sys, "ps1")
        devices = 1 if in_notebook else fewest(available, max(1, clients // nodes))
    count = device_count(kind, devices)
    if count * nodes > clients:
        raise ConfigError(
            f"trainer.devices x trainer.num_nodes must be <= {clients}, the clients of a round, "
            f"each of which trains in one process, got devices = {devices} and num_nodes = {nodes}"
        )
    if kind is CPUAccelerator and count > usable_cores():
        rank_zero_warn(f"trainer.devices = {count} processes share {usable_cores()} cores")
    strategy = check_strategy("auto" if strategy is None else strategy)
    if strategy == "auto" and count * nodes > 1:
        strategy = FederatedStrategy()
    return kwargs | {"devices": devices, "num_nodes": nodes, "strategy": strategy}


def check_threads(threads: Any) -> None:
    """Raises unless ``threads`` is None or a number of threads that this machine can run."""
    cores = usable_cores()
    if threads is not None and not (type(threads) is int and 1 <= threads <= cores):
        raise ConfigError(
            f"trainer.threads must be a whole number from 1 to {cores}, the cores of this machine, "
            f"got threads = {threads}"
        )


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Runs with ``number`` CPU threads, None for as many as there are, and puts them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fewest(available: int, clients: int) -> int:
    """The fewest processes whose busiest one trains as few clients as with all ``available``.

    >>> [fewest(cores, clients=10) for cores in (1, 2, 8, 64)]
    [1, 2, 5, 10]
    """
    most = -(-clients // min(available, clients))
    return -(-clients // most)


def accelerator_class(accelerator: str | Accelerator) -> type[Accelerator]:
    """The class that the Trainer takes for its argument ``accelerator``."""
    if isinstance(accelerator, Accelerator):
        return type(accelerator)
    names = sorted(AcceleratorRegistry.available_accelerators())
    groups = {"auto": ["tpu", "mps", "cuda", "cpu"], "gpu": ["mps", "cuda"]}
    classes: dict[str, type[Accelerator]] = {
        name: AcceleratorRegistry[name]["accelerator"] for name in names
    }
    for name in groups.get(accelerator, [accelerator]):
        if name in classes and classes[name].is_available():
            return classes[name]
    there = [name for name in names if classes[name].is_available()]
    raise ConfigError(
        f"trainer.accelerator must be auto or one that this machine has, {' or '.join(there)}, "
        f"got accelerator = {accelerator}"
    )


def device_count(kind: type[Accelerator], devices: Any) -> int:
    """How many processes of this node ``devices`` is.

    >>> device_count(CPUAccelerator, "2")
    2
    """
    try:
        if isinstance(devices, bool):
            raise TypeError
        parsed = kind.parse_devices(devices)
        if isinstance(parsed, int) and parsed > LARGEST:  # what follows is a list of them
            raise ValueError
        return len(kind.get_parallel_devices(parsed))
    except (TypeError, ValueError, MisconfigurationException) as error:
        accepted = "a number of processes >= 1"
        if kind is not CPUAccelerator:
            many = kind.auto_device_count()
            accepted = f"a number or a list of this machine's {many} {kind.name()} devices, -1"
        raise ConfigError(
            f"trainer.devices must be {accepted} or auto, got devices = {devices}"
        ) from error


def started_by_launcher() -> tuple[int, int] | None:
    """The processes of this node, and the nodes, that torchrun or srun has started."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        local = variable("LOCAL_WORLD_SIZE", least=1)
        world_size = variable("WORLD_SIZE", least=local, multiple_of=local)
        variable("LOCAL_RANK", most=local - 1)
        variable("RANK", most=world_size - 1)
        variable("MASTER_PORT", default=PORT, least=1, most=65535)
        return local, world_size // local
    if SLURMEnvironment.detect():
        nodes = variable("SLURM_NNODES", default=1, least=1)
        return variable("SLURM_NTASKS", least=nodes, multiple_of=nodes) // nodes, nodes
    return None


def variable(
    name: str,
    *,
    default: int | None = None,
    least: int = 0,
    most: int = LARGEST,
    multiple_of: int = 1,
) -> int:
    """The number in an environment variable.

    Raises:
        ConfigError: it has none without a default, or one that cannot be.
    """
    text = os.environ.get(name, default)
    value = int(text) if re.fullmatch(r"\d+", str(text)) else None  # type: ignore[arg-type]
    if value is None or not least <= value <= most or value % multiple_of:
        among = f", a multiple of {multiple_of}" if multiple_of > 1 else ""
        raise ConfigError(
            f"the environment variable {name} must be a whole number in {least} .. {most}{among}, "
            f"got {name} = {text}"
        )
    return value


def check_nodes(kwargs: dict[str, Any]) -> None:
    """Raises unless something says where the other nodes are: without it a run would wait."""
    plugins = kwargs.get("plugins") or []
    plugins = plugins if isinstance(plugins, (list, tuple)) else [plugins]
    if not (
        {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys()
        or any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
        or LSFEnvironment.detect()
        or MPIEnvironment.detect()
    ):
        raise ConfigError(
            "trainer.num_nodes must be 1 unless torchrun, srun or MASTER_ADDR, MASTER_PORT and "
            f"NODE_RANK connect the nodes, got num_nodes = {kwargs['num_nodes']}"
        )
    variable("NODE_RANK", default=0, most=kwargs["num_nodes"] - 1)
    variable("MASTER_PORT", default=PORT, least=1, most=65535)


def check_strategy(strategy: Any) -> Any:
    """``strategy``, unless it would average gradients."""
    if strategy in ("auto", "federated"):
        return strategy
    if not isinstance(strategy, (SingleDeviceStrategy, FederatedStrategy)):
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise ConfigError(
            "trainer.strategy must be auto or federated, any other would average the gradients "
            f"of different clients, got strategy = {name}"
        )
    return strategy
