"""A run that was killed at any moment goes on to the bits of one that was not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT
from resumed import whole

SCRIPT = ROOT / "benchmarks" / "crash.py"
LEAN = ["--moments=5", "--random=2", "--rounds=3", "--trainer.federation.local_epochs=1"]


@pytest.fixture(scope="module")
def crash() -> ModuleType:
    """The benchmark as a module."""
    spec = spec_from_file_location("crash", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["crash"] = module  # its annotations are looked up there
    spec.loader.exec_module(module)
    return module


def test_killed_runs_are_resumed_to_the_same_bits(crash: ModuleType) -> None:
    command = [sys.executable, str(SCRIPT), *LEAN, "--trainer.accelerator=cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") == 7
    for moment in list(crash.MOMENTS)[:5]:
        assert f"{moment}, round" in done.stdout


def test_the_comparison_sees_one_bit_and_one_row(crash: ModuleType) -> None:
    root, _ = whole(3)
    shutil.copytree(root, "run")
    assert crash.same(root, Path("run"))

    last = Path("run/checkpoints/version_0/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    weight = next(iter(checkpoint["state_dict"].values()))
    weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    torch.save(checkpoint, last)
    assert not crash.same(root, Path("run"))

    shutil.copy(root / "checkpoints/version_0/last.ckpt", last)
    assert crash.same(root, Path("run"))
    for name in ("rounds.csv", "metrics.csv"):
        file = Path("run/logs/version_0", name)
        text = file.read_text()
        file.write_text(text.replace("0.", "1.", 1))
        assert not crash.same(root, Path("run")), name
        file.write_text(text)
