"""The command line around the Trainer, and its one-sentence errors."""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from signal import SIGINT
from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.attacks import Attack
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.data.splits import Split
from leadfl_pl.defenses import ClientDefense
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.records.checkpoints import is_federated, read_checkpoint, refusal
from leadfl_pl.schedules import Schedule
from leadfl_pl.trainer.strategy import RankLostError
from leadfl_pl.trainer.trainer import DiskFullError, FederatedTrainer

TRACEBACK_VARIABLE = "LEADFL_PL_TRACEBACK"
SEAMS: dict[str, type] = {
    "defense": ClientDefense,
    "aggregator": Aggregator,
    "attack": Attack,
    "schedule": Schedule,
    "split": Split,
    "data": FederatedDataModule,
}


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration beside the logs, and hands it to the logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.as_dict()
        for logger in trainer.loggers:
            logger.log_hyperparams(
                {k: config.get(k) for k in ("model", "data", "seed_everything")}
                | {"federation": (config.get("trainer") or {}).get("federation")}
            )


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with an argument in one sentence, without the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser: the outermost one reports
            super().error(message, ex)
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(ex)
        print(f"error: {explain(message)}", file=sys.stderr)
        self.exit(2)


def explain(message: str) -> str:
    """One sentence from jsonargparse's tree of everything that it tried.

    >>> explain('Parser key "f": Expected a int. Got value: 4.5')
    'f must be int, got 4.5'
    """
    keys = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', message))
    if found := re.search(r"(?:Option|Key) '([^']+)' is not \w+", message):
        owners = re.findall(r"given class_path '([^']+)'", message)
        where = f"{keys}.{found[1]}" if keys else found[1]
        return f"{where} is no setting" + (f" of {_settings(owners[-1])}" if owners else "")
    if found := re.search(r"dot import path string: (\S+)", message):
        seam = SEAMS.get(keys.rpartition(".")[2])
        known = f"; known are {', '.join(_known(seam))}" if seam else ""
        return f"{keys} = {found[1]}: neither a class nor a file of that name{known}"
    if found := re.search(r"Expected an? (.+)\. Got value: (.+)", message):
        return f"{keys} must be {_type_name(found[1])}, got {found[2]}"
    if found := re.search(r"Subtypes: \[(.+)\][\s\S]*Given value: (.+)", message):
        kinds = " or ".join(_type_name(kind) for kind in found[1].split(", "))
        return f"{keys} must be {kinds}, got {found[2]}"
    return " ".join(message.split())


def _type_name(kind: str) -> str:
    name = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind).replace("NoneType", "null")
    return re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", name)


def _settings(class_path: str) -> str:
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    return f"{name}, which has {', '.join(parameters) or 'none'}"


def _known(base: type) -> list[str]:
    found: set[type] = set()
    queue = [base]
    while queue:
        subclasses: list[type] = queue.pop().__subclasses__()
        found.update(subclasses)
        queue += subclasses
    return sorted(c.__name__ for c in found if not inspect.isabstract(c))


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
            seed_everything_default=0,
            parser_class=OneLineParser,
            **kwargs,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Looks at the checkpoint before Lightning reads settings of the model from it."""
        super().parse_arguments(parser, args)
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path in (None, "last", "best", "hpc", "registry"):
            return
        if not Path(path).is_file():
            raise ConfigError(f"ckpt_path must be a checkpoint or last, got ckpt_path = {path}")
        checkpoint = read_checkpoint(Path(path))
        if self.config.subcommand == "fit" and not is_federated(checkpoint):
            raise refusal(Path(path), "it was not written by a FederatedTrainer")


def main(args: list[str] | None = None) -> int:
    """Runs the command line; a configuration that cannot work is one sentence on stderr.

    Returns:
        0; 2 for a wrong configuration; 1 where another process of the run is gone (137 where
        Lightning's observer of processes saw that first), or a disk is full; 143 where SIGTERM and
        130 where Ctrl-C stopped the run, after a round or, asked twice, at once. Set
        ``LEADFL_PL_TRACEBACK=1`` to see where an error arose.
    """
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
    try:
        trainer = FederatedCLI(args=args).trainer
    except (ValueError, MisconfigurationException) as error:
        cause = _configuration_error(error)
        if cause is None:
            raise
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        print(f"error: {cause}", file=sys.stderr)
        return 2
    except (RankLostError, DiskFullError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's way to end on Ctrl-C
            return 128 + SIGINT
        raise
    if trainer.stopped_by is not None and trainer.is_global_zero:  # else the launcher kills rank 0
        return 128 + trainer.stopped_by
    return 0


def _configuration_error(error: BaseException | None) -> BaseException | None:
    while error is not None:
        if isinstance(error, (ConfigError, MisconfigurationException)):
            return error
        error = error.__cause__ or error.__context__
    return None
