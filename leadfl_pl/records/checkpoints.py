"""Checkpoints: one after every round, written whole, and refused in one sentence if unusable."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.records.files import PART, write_whole
from leadfl_pl.records.folders import (
    CHECKPOINTS,
    RunLogger,
    claim,
    is_run_folder,
    last_checkpoint,
    next_number,
    touch,
)

KEPT = 2  # rounds: one more than the last, for the case that the last is damaged
FORBIDDEN = re.compile(r"(?:GLOBAL|function|class) ([\w.]+\.\w+)")


class RoundCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint of the last two rounds, in a folder of the run's own.

    ``last.ckpt`` links to the newer one. A run that goes on keeps its folder; a fresh one gets
    ``root/checkpoints/version_N``, with the N of its logs if it has any.

    Args:
        root: the Trainer's ``default_root_dir``.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(
            filename="round-{epoch}",
            auto_insert_metric_name=False,
            monitor="step",
            mode="max",
            save_top_k=KEPT,
            save_last="link",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.root = root

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.ckpt_path:
            folder = Path(trainer.ckpt_path).parent
            if is_run_folder(folder):
                for part in folder.glob(f"*{PART}"):
                    part.unlink(missing_ok=True)  # of a process that was killed
                touch(folder)
                self.dirpath = str(folder)
                super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.dirpath is None:  # a fresh run, which nothing refuses any more
            if trainer.is_global_zero:
                logger = trainer.logger
                number = next_number(self.root)
                if isinstance(logger, RunLogger):
                    number = logger.version
                self.dirpath = str(claim(self.root / CHECKPOINTS, number))
            super().setup(trainer, pl_module, "fit")  # tells the other ranks
        super().on_train_start(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (folder := self.dirpath) is None:  # the files are those of another run
            return

        def here(path: str) -> str:  # whatever the folder was called when it was written
            return path and os.path.join(folder, os.path.basename(path))

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        moved: dict[str, Any] = {key: here(state_dict[key]) for key in paths}
        moved |= {"dirpath": folder, "best_k_models": models}
        super().load_state_dict(state_dict | moved)


def how_to_go_on(trainer: Trainer) -> str:
    """A sentence for somebody whose run has ended early."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RoundCheckpoint) and (last := last_checkpoint(callback.root)):
            return f"The last checkpoint is whole: go on with ckpt_path = {last}"
    return "There is no checkpoint to go on from"


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads no code from one.

    Folders of this machine only; other addresses (``s3://``) are left to Lightning.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if "://" in str(path) or storage_options is not None:
            return super().save_checkpoint(checkpoint, path, storage_options)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getbuffer())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only is not False)
        return read_checkpoint(Path(path), map_location, weights_only is not False)


def read_checkpoint(
    path: Path, map_location: Any = "cpu", weights_only: bool = True, key: str = "ckpt_path"
) -> dict[str, Any]:
    """The content of a Trainer's checkpoint.

    Args:
        path: the file.
        map_location: as in :func:`torch.load`.
        weights_only: False runs whatever code the file holds.
        key: of the setting that names the file, for errors.

    Raises:
        ConfigError: the file is damaged, would run code, or is no checkpoint; the sentence names
            the newest one beside it that is good.
    """
    try:
        return _read(path, map_location, weights_only)
    except ConfigError as error:
        raise refusal(path, str(error), key) from error


def _read(path: Path, map_location: Any = "cpu", weights_only: bool = True) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError("there is no such file")
    if not os.access(path, os.R_OK):
        raise ConfigError("it may not be read by this user")
    if not zipfile.is_zipfile(path):
        raise ConfigError("it is cut off, or was never a checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:  # torch.load checks no sums
                raise ConfigError(f"it is damaged: the check sum of {member} is wrong")
        checkpoint: Any = torch.load(path, map_location=map_location, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if found := FORBIDDEN.search(str(error)):
            raise ConfigError(
                f"it would call {found[1]} when it is loaded, and a checkpoint may hold tensors "
                "and plain values only"
            ) from error
        raise ConfigError("its content cannot be read") from error
    except (RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("it is damaged, or was never a checkpoint") from error
    needed = {"state_dict", "loops", "pytorch-lightning_version"}
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not needed <= checkpoint.keys():
        raise ConfigError("it is not a checkpoint that a Trainer wrote")
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ConfigError("its weights are no tensors")
    return dict(checkpoint)


def is_federated(checkpoint: dict[str, Any]) -> bool:
    """Whether a FederatedTrainer wrote it, so that a run can go on from it."""
    state = checkpoint["loops"].get("fit_loop", {}).get("state_dict", {})
    return {"rounds_done", "settings", "server", "momenta", "result"} <= set(state)


def require_federated(path: Path, weights_only: bool = True) -> None:
    """Raises :class:`ConfigError` unless a run can go on from the checkpoint at ``path``."""
    if not is_federated(read_checkpoint(path, weights_only=weights_only)):
        raise refusal(path, "it was not written by a FederatedTrainer")


def start_from(path: str, client: LightningModule) -> None:
    """Gives ``client`` the weights of the checkpoint at ``path``, and nothing else of its run.

    Raises:
        ConfigError: the file cannot be used, or holds another network.
    """
    checkpoint = read_checkpoint(Path(path), client.device, key="trainer.federation.start_from")
    check_weights(checkpoint, client, f"trainer.federation.start_from = {path}")
    client.load_state_dict(checkpoint["state_dict"])


def check_weights(checkpoint: dict[str, Any], client: LightningModule, which: str) -> None:
    """Raises :class:`ConfigError` unless ``client`` can take the weights of a checkpoint."""
    shapes = {k: tuple(v.shape) for k, v in client.state_dict().items()}
    saved = {k: tuple(v.shape) for k, v in checkpoint["state_dict"].items()}
    for key in [*shapes, *saved]:
        if shapes.get(key) != saved.get(key):
            raise ConfigError(
                f"{which} cannot be used: it holds another network: {key} is "
                f"{_shape(saved.get(key))} there and {_shape(shapes.get(key))} here"
            )
    for key, value in checkpoint["state_dict"].items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ConfigError(f"{which} cannot be used: its {key} has entries that are not finite")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"


def refusal(path: Path, reason: str, key: str = "ckpt_path") -> ConfigError:
    """The error about the checkpoint at ``path``, with the newest good one beside it."""
    good = newest_good(path)
    offer = f"; the newest good one beside it is {good}" if good else ""
    return ConfigError(f"{key} = {path} cannot be used: {reason}{offer}")


def newest_good(path: Path) -> Path | None:
    """The newest other checkpoint in the folder of ``path`` from which a run can go on."""
    others = [p for p in path.parent.glob("*.ckpt") if p.is_file()]
    for other in sorted(others, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if path.exists() and other.samefile(path):
            continue
        try:
            if is_federated(_read(other)):
                return other
        except ConfigError:
            continue
    return None
