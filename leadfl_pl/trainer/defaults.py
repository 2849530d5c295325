"""What a FederatedTrainer adds to the arguments of a Trainer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import CheckpointIO

from leadfl_pl.federation.config import Federation
from leadfl_pl.records.checkpoints import RoundCheckpoint, WholeCheckpointIO
from leadfl_pl.records.folders import RunLogger
from leadfl_pl.records.report import RunReport
from leadfl_pl.trainer.backdoor_evaluation import BackdoorEvaluation
from leadfl_pl.trainer.progress_bar import RoundProgressBar
from leadfl_pl.trainer.round_metrics import RoundMetrics
from leadfl_pl.trainer.stop_on_signal import StopOnSignal


def processes(cores: int, clients: int) -> int:
    """The fewest single-threaded processes that train ``clients`` in as few waves as ``cores`` can.

    >>> [processes(cores, clients=10) for cores in (1, 2, 8, 64)]
    [1, 2, 5, 10]
    """
    waves = -(-clients // max(1, min(cores, clients)))
    return -(-clients // waves)


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def with_devices(kwargs: dict[str, Any], federation: Federation) -> Any:
    """``devices``; of "auto" on a CPU, as many single-threaded processes as serve the cohort.

    One thread each: then the digits do not depend on the number of cores. Within a launcher's or a
    notebook's process, and with several nodes, "auto" is what Lightning makes of it.
    """
    devices = kwargs.get("devices")
    on_cpu = kwargs.get("accelerator") == "cpu" or (
        kwargs.get("accelerator") in (None, "auto") and not torch.accelerator.is_available()
    )
    launched = any(name in os.environ for name in ("LOCAL_RANK", "SLURM_JOB_ID", "WORLD_SIZE"))
    single_node = int(kwargs.get("num_nodes") or 1) == 1
    if devices != "auto" or not on_cpu or not single_node or hasattr(sys, "ps1"):
        return devices
    if launched and "LEADFL_PL_PROCESSES" not in os.environ:
        return devices
    count = processes(usable_cores(), federation.clients_per_round)
    os.environ["LEADFL_PL_PROCESSES"] = str(count)  # the processes that Lightning starts look here
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    return count


def device_count(kwargs: dict[str, Any]) -> int:
    """How many processes the Trainer would run, over all nodes."""
    devices, accelerator = kwargs.get("devices"), kwargs.get("accelerator")
    if isinstance(devices, (list, tuple)):
        count = len(devices)
    elif str(devices) in ("None", "auto", "-1"):
        uses_gpus = accelerator in (None, "auto", "gpu", "cuda")
        count = max(1, torch.cuda.device_count()) if uses_gpus else 1
    elif "," in str(devices):
        count = len([index for index in str(devices).split(",") if index.strip()])
    else:
        count = int(str(devices))
    return count * int(kwargs.get("num_nodes") or 1)


def with_csv(kwargs: dict[str, Any], root: str) -> list[Logger] | bool:
    """The loggers of the run: CSV, and what else was given."""
    given = kwargs.get("logger")
    if given is False or kwargs.get("fast_dev_run"):
        return False
    loggers: list[Logger] = list(given) if isinstance(given, (list, tuple)) else []
    if isinstance(given, Logger):
        loggers = [given]
    csv = [logger for logger in loggers if isinstance(logger, CSVLogger)]
    others = [logger for logger in loggers if not isinstance(logger, CSVLogger)]
    return [*(csv or [RunLogger(root)]), *others]  # the first one's is log_dir


def with_callbacks(kwargs: dict[str, Any], federation: Federation, root: Path) -> list[Callback]:
    """The callbacks given, and of each kind that a run needs one."""
    given = kwargs.get("callbacks") or []
    callbacks: list[Callback] = list(given) if isinstance(given, (list, tuple)) else [given]

    def lacks(kind: type[Callback]) -> bool:
        return not any(isinstance(c, kind) for c in callbacks)

    bar = kwargs.get("enable_progress_bar")
    if bar in (None, True) and lacks(ProgressBar):
        callbacks.append(RoundProgressBar())
    if federation.attack is not None and lacks(BackdoorEvaluation):
        callbacks.append(BackdoorEvaluation(federation.attack))
    callbacks.insert(0, RoundMetrics())  # the others see what it logs
    if kwargs.get("fast_dev_run"):
        return callbacks
    if lacks(RunReport):
        callbacks.append(RunReport())
    callbacks.append(StopOnSignal())
    if kwargs.get("enable_checkpointing") is not False and lacks(RoundCheckpoint):
        callbacks.append(RoundCheckpoint(root))
    return callbacks


def with_checkpoint_io(kwargs: dict[str, Any]) -> list[Any]:
    """The plugins given, and the one that writes checkpoints whole unless another does."""
    given = kwargs.get("plugins") or []
    plugins = list(given) if isinstance(given, (list, tuple)) else [given]
    of_strategy = getattr(kwargs.get("strategy"), "_checkpoint_io", None)
    if of_strategy is not None or any(isinstance(p, CheckpointIO) for p in plugins):
        return plugins
    return [*plugins, WholeCheckpointIO()]
