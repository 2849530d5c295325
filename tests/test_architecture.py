"""Imports go down only; Lightning's private API stays in three files, and is still there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop

FLOORS = re.findall(r"^\| (\d) \| (.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
FLOOR = {name: int(floor) for floor, names in FLOORS for name in re.findall(r"`(\w+)`", names)}
PACKAGE = ROOT / "leadfl_pl"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imported_packages(path) -> set[str]:
    tree = ast.parse(path.read_text())
    modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    modules += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return {m.split(".")[1] for m in modules if m.startswith("leadfl_pl.")}


def package_of(path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path) -> None:
    package = package_of(path)
    for other in imported_packages(path) - {package}:
        assert FLOOR[other] < FLOOR[package], f"{package} imports {other}"


def test_the_table_of_floors_names_all_there_is() -> None:
    assert set(FLOOR) == {package_of(path) for path in FILES}


def test_private_lightning_is_touched_in_three_files_only() -> None:
    private = ("trainer._", "_FitLoop", "epoch_loop", "trainer import call", "val_loop")
    touching = {package_of(p) for p in FILES if any(word in p.read_text() for word in private)}
    assert touching <= {"loop", "trainer", "strategy"}


@pytest.mark.parametrize(
    "name",
    [
        "epoch_progress",
        "epoch_loop",
        "max_batches",
        "_combined_loader",
        "restarting",
        "on_run_start",
    ],
)
def test_the_fit_loop_still_has_what_ours_builds_on(name: str) -> None:
    assert hasattr(_FitLoop(Trainer(logger=False, enable_checkpointing=False)), name)


@pytest.mark.parametrize(
    "name",
    [
        "batch_progress.reset_on_run",
        "batch_progress.increment_ready",
        "manual_optimization.optim_step_progress.increment_completed",
        "val_loop.run",
        "_batches_that_stepped",
        "_should_check_val_epoch",
    ],
)
def test_the_epoch_loop_still_has_what_ours_builds_on(name: str) -> None:
    found = Trainer(logger=False, enable_checkpointing=False).fit_loop.epoch_loop
    for part in name.split("."):
        assert hasattr(found, part), f"this Lightning's epoch loop has no {name}"
        found = getattr(found, part)


def test_the_trainer_still_has_what_ours_builds_on() -> None:
    assert callable(Trainer._run)


@pytest.mark.parametrize(
    ("connector", "names"),
    [
        ("_checkpoint_connector", ["_parse_ckpt_path", "resume_start", "_loaded_checkpoint"]),
        ("_signal_connector", ["register_signal_handlers", "teardown", "_slurm_sigusr_handler_fn"]),
        ("_accelerator_connector", ["cluster_environment"]),
    ],
)
def test_the_connectors_still_have_what_ours_build_on(connector: str, names: list[str]) -> None:
    found = getattr(Trainer(logger=False, enable_checkpointing=False), connector)
    assert [name for name in names if not hasattr(found, name)] == []


def test_importing_the_package_imports_nothing_heavy_that_may_be_missing() -> None:
    heavy = ["wandb", "sklearn", "tensorboard", "pandas"]
    code = f"import sys, leadfl_pl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
