"""The arguments of a Trainer: which a federation takes, and what it adds to them."""

from __future__ import annotations

import inspect
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities import rank_zero
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leadfl_pl.core.errors import ConfigError, require_choice, require_number
from leadfl_pl.federation.config import Federation
from leadfl_pl.federation.plain_trainer import SCALER
from leadfl_pl.records.checkpoints import RoundCheckpoint, WholeCheckpointIO
from leadfl_pl.records.folders import RunLogger
from leadfl_pl.records.report import RunReport
from leadfl_pl.trainer.backdoor_evaluation import BackdoorEvaluation
from leadfl_pl.trainer.devices import with_processes
from leadfl_pl.trainer.progress_bar import RoundProgressBar
from leadfl_pl.trainer.round_metrics import RoundMetrics
from leadfl_pl.trainer.stop_on_signal import StopOnSignal

LENGTH = "a round is as long as trainer.federation.local_epochs or local_steps says"
CLIPPING = "a rule such as NormClipping bounds updates, and a defense changes local steps"
UNUSED = {  # an argument of a Trainer, and what there is in its place
    "limit_train_batches": LENGTH,
    "overfit_batches": LENGTH,
    "val_check_interval": "trainer.check_val_every_n_epoch says which rounds are evaluated",
    "max_steps": "trainer.max_epochs counts rounds, of one server step each",
    "min_steps": "trainer.min_epochs counts rounds, of one server step each",
    "accumulate_grad_batches": "data.batch_size is the batch of a local step",
    "gradient_clip_val": CLIPPING,
    "gradient_clip_algorithm": CLIPPING,
    "reload_dataloaders_every_n_epochs": "clients keep their data",
    "sync_batchnorm": "it would mix the batch statistics of different clients",
    "barebones": "a run keeps its record",
    "limit_predict_batches": "validate and test measure, and nothing predicts",
    "model_registry": "checkpoints are files below trainer.default_root_dir",
}
UNUSED_CALLBACKS = (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
PROFILERS = ("simple", "advanced", "pytorch", "xla")
LEAST = {
    "max_epochs": 1,
    "min_epochs": 0,
    "check_val_every_n_epoch": 1,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 0,
}
PRECISIONS = ("None", "32", "32-true", "64", "64-true", "bf16", "bf16-mixed", "bf16-true")


def trainer_arguments(kwargs: dict[str, Any], federation: Federation) -> dict[str, Any]:
    """The arguments of a Trainer, checked and with what a federated run needs besides.

    Args:
        kwargs: as they were given.
        federation: that the Trainer runs.

    Raises:
        ConfigError: a federation has no use for an argument, or its value cannot work.
    """
    check_values(kwargs)
    kwargs = with_processes(kwargs, federation.clients_per_round)
    if "://" in str(folder := kwargs.get("default_root_dir") or "."):
        raise ConfigError(
            "trainer.default_root_dir must be a folder of this machine, "
            f"got default_root_dir = {folder}"
        )
    root = Path(os.path.expanduser(folder))
    kwargs["num_sanity_val_steps"] = kwargs.get("num_sanity_val_steps") or 0
    kwargs["log_every_n_steps"] = kwargs.get("log_every_n_steps") or 1
    kwargs["logger"] = with_csv(kwargs, str(root))
    kwargs["callbacks"] = with_callbacks(kwargs, federation, root)
    kwargs["plugins"] = with_checkpoint_io(kwargs)
    kwargs["use_distributed_sampler"] = False  # the datamodule splits the evaluation
    kwargs["max_time"] = None  # the Timer among the callbacks
    writes = kwargs["logger"] or any(isinstance(c, RoundCheckpoint) for c in kwargs["callbacks"])
    if writes:
        check_folder(root)
    logging.getLogger(rank_zero.__name__).addFilter(is_no_advertisement)
    return kwargs


def check_values(kwargs: dict[str, Any]) -> None:
    """Raises :class:`ConfigError` unless a federation takes the values that were given."""
    parameters = inspect.signature(Trainer).parameters
    for key, instead in UNUSED.items():
        value = kwargs.get(key)
        if value is not None and value != parameters[key].default:
            raise ConfigError(
                f"trainer.{key} is not used in a federation: {instead}; leave it out, "
                f"got {key} = {value}"
            )
    for key, least in LEAST.items():
        value = kwargs.get(key)
        if value is not None and (type(value) is not int or value < least):
            raise ConfigError(
                f"trainer.{key} must be a whole number >= {least}, got {key} = {value}"
            )
    for key in ("limit_val_batches", "limit_test_batches"):
        if (value := kwargs.get(key)) is not None:
            require_number("trainer", key, value, least=0)
    if (profiler := kwargs.get("profiler")) is not None and not isinstance(profiler, Profiler):
        require_choice("trainer", "profiler", profiler, PROFILERS)
    fewest, most = kwargs.get("min_epochs") or 0, kwargs.get("max_epochs")
    if most is not None and fewest > most:
        raise ConfigError(
            f"trainer.min_epochs must be <= max_epochs = {most}, got min_epochs = {fewest}"
        )
    given = kwargs.get("callbacks") or []
    for callback in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(callback, UNUSED_CALLBACKS):
            raise ConfigError(
                "trainer.callbacks must leave the training of the clients as it is, "
                f"got {type(callback).__name__}"
            )
    if (precision := kwargs.get("precision")) is not None and str(precision) not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision must be 32, 64 or bf16, got precision = {precision}: {SCALER}"
        )


def check_folder(root: Path) -> None:
    """Raises unless files can be written to ``root``, which is made if it is not there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            "trainer.default_root_dir must be a folder in which files can be made, "
            f"got default_root_dir = {root}: {reason}"
        ) from error


def is_no_advertisement(record: logging.LogRecord) -> bool:
    """Whether Lightning logs something else than a tip to install one more of its packages."""
    return "try installing" not in record.getMessage()


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

    callbacks.insert(0, RoundMetrics())  # the others see what it logs
    bar = kwargs.get("enable_progress_bar")
    if bar in (None, True) and lacks(ProgressBar):
        callbacks.append(RoundProgressBar())
    if federation.attack is not None and lacks(BackdoorEvaluation):
        callbacks.append(BackdoorEvaluation(federation.attack))
    if (duration := kwargs.get("max_time")) is not None and lacks(Timer):
        callbacks.append(timer(duration))
    if kwargs.get("fast_dev_run"):
        return callbacks
    if lacks(RunReport):
        callbacks.append(RunReport())
    callbacks.append(StopOnSignal())
    if kwargs.get("enable_checkpointing") is not False and lacks(RoundCheckpoint):
        callbacks.append(RoundCheckpoint(root))
    return callbacks


def timer(duration: Any) -> Timer:
    """Ends the run after the round in which ``duration`` is over.

    The Trainer's own would ask all ranks after every client, and they may have unequally many.
    """
    try:
        ends = Timer(duration, interval="epoch")
        if not (ends.time_remaining() or 0) > 0:
            raise ValueError
    except (MisconfigurationException, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"trainer.max_time must be DD:HH:MM:SS and > 0, got max_time = {duration}"
        ) from error
    return ends


def with_checkpoint_io(kwargs: dict[str, Any]) -> list[Any]:
    """The plugins given, and the one that writes checkpoints whole unless another does."""
    given = kwargs.get("plugins") or []
    plugins = list(given) if isinstance(given, (list, tuple)) else [given]
    of_strategy = getattr(kwargs.get("strategy"), "_checkpoint_io", None)
    if of_strategy is not None or any(isinstance(p, CheckpointIO) for p in plugins):
        return plugins
    return [*plugins, WholeCheckpointIO()]
