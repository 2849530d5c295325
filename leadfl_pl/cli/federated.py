"""``LightningCLI`` for a federation: fit, validate and test."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from leadfl_pl.cli.messages import configuration_error, not_made, not_started
from leadfl_pl.cli.parser import TRACEBACK_VARIABLE, OneLineParser, seed
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.server import FailedRoundsError
from leadfl_pl.records.checkpoints import is_federated, read_checkpoint, refusal
from leadfl_pl.records.global_model import NETWORK
from leadfl_pl.trainer.strategy import RankLostError
from leadfl_pl.trainer.trainer import DiskFullError, FederatedTrainer


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration beside the logs, and hands it to the logger."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.save_to_log_dir = bool(trainer.loggers)  # without one it would be the runs' folder
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.as_dict()
        for logger in trainer.loggers:
            logger.log_hyperparams(
                {k: config.get(k) for k in ("model", "data", "seed_everything")}
                | {"federation": (config.get("trainer") or {}).get("federation")}
            )

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts down how the network is made, for :func:`~leadfl_pl.global_model`."""
        arguments = self.config.as_dict()["model"].get("init_args") or {}
        if network := arguments.get("model"):  # a client of one's own may make its own
            checkpoint[NETWORK] = network


class FederatedCLI(LightningCLI):
    """``LightningCLI`` for a :class:`FederatedTrainer`."""

    trainer: FederatedTrainer

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            FederatedClient,
            FederatedDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=FederatedTrainer,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            parser_class=OneLineParser,
            **kwargs,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """All of Lightning's but ``predict``, for which there is no data."""
        commands = LightningCLI.subcommands()
        return {name: skipped for name, skipped in commands.items() if name != "predict"}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=seed, default=0, help="of every random draw")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--diagnostics",
            type=Callback | list[Callback] | None,
            default=None,
            enable_path=True,
            help="callbacks such as AttackEffect, in addition to those of trainer.callbacks",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the Trainer, with the diagnostics before the callbacks that may record them."""
        config = self.config_init[self.subcommand]
        callbacks: list[Callback] = []
        for given in (config.diagnostics, config.trainer.callbacks):
            callbacks += given if isinstance(given, list) else [given] if given else []
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Looks at the checkpoint before Lightning reads settings of the model from it."""
        try:
            self.config = parser.parse_args(args)
        except UnicodeDecodeError as error:
            raise ConfigError(f"a config must be UTF-8 text: {error}") from error
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path == "last" or (path is None and self.config.subcommand == "fit"):
            return
        if path is None or not os.path.isfile(path):
            shown = "null" if path is None else path
            raise ConfigError(f"ckpt_path must be a checkpoint or last, got ckpt_path = {shown}")
        checkpoint = read_checkpoint(Path(path))
        if self.config.subcommand == "fit" and not is_federated(checkpoint):
            raise refusal(Path(path), "it was not written by a FederatedTrainer")

    def instantiate_classes(self) -> None:
        """Says in one sentence why a class cannot be made of its settings."""
        try:
            super().instantiate_classes()
        except Exception as error:
            if configuration_error(error):
                raise
            raise ConfigError(not_made(error)) from error


def run(args: list[str]) -> int:
    """Runs fit, validate or test; a configuration that cannot work is one sentence on stderr.

    Returns:
        0; 2 for a wrong configuration; 1 where another process of the run is gone (137 where
        Lightning's observer of processes saw that first), a disk is full, or too many rounds had
        too few well-formed updates; 143 where SIGTERM and 130 where Ctrl-C stopped the run, after
        a round or, asked twice, at once. ``LEADFL_PL_TRACEBACK=1`` shows where an error arose.
    """
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists")  # of a resume
    try:
        trainer = FederatedCLI(args=args).trainer
    except (RankLostError, DiskFullError, FailedRoundsError) as error:
        return _failure(error, 1)
    except Exception as error:
        wrong = isinstance(error, (ValueError, MisconfigurationException))
        if (cause := (wrong and configuration_error(error)) or not_started(error)) is None:
            raise
        return _failure(cause, 2)
    except SIGTERMException:  # before the first round
        return 128 + SIGTERM
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's way to end on Ctrl-C
            return 128 + SIGINT
        raise
    if trainer.stopped_by is not None and trainer.is_global_zero:  # else the launcher kills rank 0
        return 128 + trainer.stopped_by
    return 0


def resolve(arguments: list[str]) -> dict[str, Any]:
    """The whole configuration that arguments of ``leadfl-pl`` stand for.

    Raises:
        ConfigError: they stand for none.
    """
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as said:
        try:
            code: Any = run([*arguments, "--print_config"])
        except SystemExit as end:
            code = end.code
    if code:
        raise ConfigError(said.getvalue().strip().removeprefix("error: "))
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return config


def _failure(error: BaseException, status: int) -> int:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return status
