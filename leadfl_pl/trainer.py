"""A Trainer whose fit loop runs federated rounds."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.strategies import SingleDeviceStrategy

from leadfl_pl.callbacks import BackdoorEvaluation, RoundProgressBar, RunReport
from leadfl_pl.federation import Federation
from leadfl_pl.loop import FederatedLoop
from leadfl_pl.strategy import FederatedStrategy
from leadfl_pl.types import ConfigError


class FederatedTrainer(Trainer):
    """A Lightning Trainer that trains a federation: ``max_epochs`` counts rounds.

    Adds what a run needs unless it was given: CSV logging (beside any other logger, so that each
    run has a folder of its own; ``logger=False`` for none), a progress bar over rounds and
    clients, backdoor evaluation, a checkpoint after every round under
    ``default_root_dir/checkpoints`` (``ckpt_path="last"`` finds it), and a table and figure at the
    end.

    Args:
        federation: schedule, attack, rule and server step.
        kwargs: everything that :class:`lightning.pytorch.Trainer` takes.

    Raises:
        ConfigError: the federation cannot be run, or the strategy would mix clients' gradients.
    """

    def __init__(self, federation: Federation, **kwargs: Any) -> None:
        if federation.seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            federation = dataclasses.replace(federation, seed=seed)
        federation.check()
        if str(kwargs.get("precision")).startswith("16"):
            raise ConfigError(
                f"trainer.precision must be 32, 64 or bf16, got precision = {kwargs['precision']}: "
                "a gradient scaler would scale what defenses and attacks see"
            )
        root = kwargs.get("default_root_dir") or "."
        kwargs["num_sanity_val_steps"] = kwargs.get("num_sanity_val_steps") or 0
        kwargs["log_every_n_steps"] = kwargs.get("log_every_n_steps") or 1
        kwargs["logger"] = _with_csv(kwargs, root)
        if kwargs.get("strategy") in (None, "auto") and _device_count(kwargs) != 1:
            kwargs["strategy"] = FederatedStrategy()
        kwargs["callbacks"] = _with_defaults(kwargs, federation, Path(root))
        super().__init__(**kwargs)
        if not isinstance(self.strategy, (SingleDeviceStrategy, FederatedStrategy)):
            raise ConfigError(
                "trainer.strategy must be federated (or auto): "
                f"{type(self.strategy).__name__} would average the gradients of different clients"
            )
        epoch_loop = self.fit_loop.epoch_loop
        loop = FederatedLoop(self, federation, self.fit_loop.min_epochs, self.fit_loop.max_epochs)
        loop.epoch_loop = epoch_loop
        self.fit_loop = loop
        self.federation = federation


def _device_count(kwargs: dict[str, Any]) -> int:
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


def _with_csv(kwargs: dict[str, Any], root: str) -> list[Logger] | bool:
    given = kwargs.get("logger")
    if given is False or kwargs.get("fast_dev_run"):
        return False
    loggers: list[Logger] = list(given) if isinstance(given, (list, tuple)) else []
    if isinstance(given, Logger):
        loggers = [given]
    csv = [logger for logger in loggers if isinstance(logger, CSVLogger)]
    others = [logger for logger in loggers if not isinstance(logger, CSVLogger)]
    return [*(csv or [CSVLogger(root, name="logs")]), *others]  # the first one's is log_dir


def _with_defaults(kwargs: dict[str, Any], federation: Federation, root: Path) -> list[Callback]:
    given = kwargs.get("callbacks") or []
    callbacks: list[Callback] = list(given) if isinstance(given, (list, tuple)) else [given]

    def lacks(kind: type[Callback]) -> bool:
        return not any(isinstance(c, kind) for c in callbacks)

    bar = kwargs.get("enable_progress_bar")
    if bar in (None, True) and lacks(ProgressBar):
        callbacks.append(RoundProgressBar())
    if federation.attack is not None and lacks(BackdoorEvaluation):
        callbacks.append(BackdoorEvaluation(federation.attack))
    if kwargs.get("fast_dev_run"):
        return callbacks
    if lacks(RunReport):
        callbacks.append(RunReport())
    saving_last = [c for c in callbacks if isinstance(c, ModelCheckpoint) and c.save_last]
    if kwargs.get("enable_checkpointing") is not False and not saving_last:
        callbacks.append(
            ModelCheckpoint(
                dirpath=root / "checkpoints",
                filename="round-{epoch}",
                auto_insert_metric_name=False,
                every_n_epochs=1,
                save_top_k=1,
                save_last=True,
                save_on_train_epoch_end=True,
            )
        )
    return callbacks
