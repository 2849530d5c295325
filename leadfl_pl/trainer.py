"""A Trainer whose fit loop runs federated rounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from leadfl_pl.callbacks import BackdoorEvaluation, RoundProgressBar, RunReport
from leadfl_pl.federation import Federation
from leadfl_pl.loop import FederatedLoop
from leadfl_pl.strategy import FederatedStrategy
from leadfl_pl.types import ConfigError


class FederatedTrainer(Trainer):
    """A Lightning Trainer that trains a federation: ``max_epochs`` counts rounds.

    Adds what a run needs unless it was given: CSV logging, a progress bar over rounds and
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
            federation.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        federation.check()
        root = kwargs.get("default_root_dir") or "."
        kwargs["num_sanity_val_steps"] = kwargs.get("num_sanity_val_steps") or 0
        if kwargs.get("logger") in (None, True) and not kwargs.get("fast_dev_run"):
            kwargs["logger"] = CSVLogger(root, name="logs")
        if kwargs.get("strategy") in (None, "auto") and _asks_for_several(kwargs):
            kwargs["strategy"] = FederatedStrategy()
        kwargs["callbacks"] = _with_defaults(kwargs, federation, Path(root))
        kwargs.setdefault("log_every_n_steps", 1)
        super().__init__(**kwargs)
        if isinstance(self.strategy, DDPStrategy) and not isinstance(
            self.strategy, FederatedStrategy
        ):
            raise ConfigError(
                "trainer.strategy must be federated (or auto): "
                f"{type(self.strategy).__name__} would average the gradients of different clients"
            )
        epoch_loop = self.fit_loop.epoch_loop
        loop = FederatedLoop(self, federation, self.fit_loop.min_epochs, self.fit_loop.max_epochs)
        loop.epoch_loop = epoch_loop
        self.fit_loop = loop
        self.federation = federation


def _asks_for_several(kwargs: dict[str, Any]) -> bool:
    devices = kwargs.get("devices")
    count = len(devices) if isinstance(devices, (list, tuple)) else devices
    return count not in (None, "auto", 1, "1") or kwargs.get("num_nodes") not in (None, 1)


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
    every_round = [c for c in callbacks if isinstance(c, ModelCheckpoint) and c.monitor is None]
    if kwargs.get("enable_checkpointing") is not False and not every_round:
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
