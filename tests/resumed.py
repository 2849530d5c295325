"""Short runs that are stopped and go on, for tests."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from tiny import SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl
from leadfl_pl.records.checkpoints import read_checkpoint

Result = tuple[torch.Tensor, list[dict[str, float]]]
FOLDER = Path("run/checkpoints/version_0")
WHOLE = tempfile.TemporaryDirectory()


def fit(
    rounds: int = 3,
    ckpt_path: str | Path | None = None,
    root: str | Path = "run",
    callbacks: list[Callback] | None = None,
    client: fl.FederatedClient | None = None,
    logger: bool = True,
    **settings: Any,
) -> Result:
    """Final state and rows of a run under ``root``."""
    report = fl.RunReport()
    trainer = small_trainer(
        fl.FedAvg(), fl.PatternBackdoor(), rounds=rounds, default_root_dir=str(root),
        enable_checkpointing=True, logger=logger, callbacks=[report, *(callbacks or [])],
        federation={"local_epochs": 1}, **settings,
    )  # fmt: skip
    client = client or small_client()
    trainer.fit(client, datamodule=SmallImages(batch_size=8), ckpt_path=ckpt_path)
    return weights(client), report.rows


@cache
def whole(rounds: int) -> tuple[Path, Result]:
    """Root and result of a run that nobody stopped, once for all tests."""
    root = Path(WHOLE.name, str(rounds))
    return root, fit(rounds, root=root)


def assert_is_whole(result: Result, rounds: int = 5) -> None:
    """That a run has come to the bits of one that nobody stopped."""
    state, rows = whole(rounds)[1]
    assert torch.equal(result[0], state)
    assert result[1] == rows


def copy_of_three_rounds() -> Path:
    """``run/checkpoints/version_0`` of a finished run of three rounds."""
    shutil.copytree(whole(3)[0], "run")
    return FOLDER


def rounds_in(path: Path | None) -> int:
    """How many rounds the checkpoint has seen."""
    assert path is not None
    return read_checkpoint(path)["global_step"]
