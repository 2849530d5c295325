"""What all tests share: one thread, no leftover seed, and small data."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
VECTORS = Path(__file__).parent / "vectors"

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("sys.argv", ["cli.py"])
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # what is piped has lines and no bars
        monkeypatch.delenv(name, raising=False)
    for name in [n for n in os.environ if n.startswith(("PL_GLOBAL_SEED", "LEADFL_PL_"))]:
        monkeypatch.delenv(name)


class Vectors:
    """The released code's numbers, as tensors."""

    def __init__(self) -> None:
        self.arrays = np.load(VECTORS / "released_code.npz")
        self.meta = json.loads((VECTORS / "released_code.json").read_text())

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.tensor(self.arrays[key])

    def state(self, prefix: str) -> dict[str, torch.Tensor]:
        """All tensors directly under ``prefix``, by their last name."""
        names = [k for k in self.arrays if k.startswith(prefix + "/")]
        return {k[len(prefix) + 1 :]: self[k] for k in names if "/" not in k[len(prefix) + 1 :]}

    def cases(self) -> list[dict[str, Any]]:
        """The training runs that were recorded."""
        return self.meta["train"]


@pytest.fixture(scope="session")
def vectors() -> Vectors:
    return Vectors()
