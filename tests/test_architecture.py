"""Imports go down only; Lightning's private API stays in one package, and is still there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer import call

FLOORS = re.findall(r"^\| (\d) \| (.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
FLOOR = {name: int(floor) for floor, names in FLOORS for name in re.findall(r"`(\w+)`", names)}
PACKAGE = ROOT / "leadfl_pl"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imported_packages(path) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not any(n.level for n in nodes), f"{path}: an import without the package's name"
    modules = [n.module for n in nodes if n.module]
    modules += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert "leadfl_pl" not in modules or package_of(path) == "cli", f"{path} imports the top"
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


TRAINER = Trainer(logger=False, enable_checkpointing=False)
LIGHTNING = {
    "Trainer": TRAINER,
    "fit loop": TRAINER.fit_loop,
    "epoch loop": TRAINER.fit_loop.epoch_loop,
    "LightningModule": LightningModule(),
    "LightningDataModule": LightningDataModule(),
    "Callback": ModelCheckpoint(),
    "strategy": DDPStrategy(),
    "module call": call,
}
USED = {  # of Lightning's private API, in trainer/ only
    "module call": ["_call_callback_hooks", "_call_lightning_module_hook"],
    "Trainer": ["_logger_connector"],
    "fit loop": ["_combined_loader"],
    "epoch loop": ["_batches_that_stepped", "_should_check_val_epoch"],
}
PUBLIC_NAMES_OF_PRIVATE_LOOPS = {
    "fit loop": ["epoch_loop", "epoch_progress", "max_batches", "on_run_start", "on_advance_end"],
    "epoch loop": [
        "batch_progress.reset_on_run",
        "batch_progress.increment_ready",
        "manual_optimization.optim_step_progress.increment_completed",
        "val_loop.run",
    ],
}


def private_accesses(path) -> set[str]:
    """Names of Lightning's private attributes that a file reads, sets or imports."""
    names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    private = {name for owner in LIGHTNING.values() for name in dir(owner) if name[0] == "_"}
    return {name for name in names & private if not name.startswith("__")}


def private_imports(path) -> set[str]:
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    lightning = [n for n in nodes if (n.module or "").startswith("lightning")]
    return {alias.name for n in lightning for alias in n.names if alias.name.startswith("_")}


def defined_names(path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


def test_private_lightning_is_touched_in_trainer_only_and_is_what_the_table_says() -> None:
    used: set[str] = set()
    for path in FILES:
        accesses = private_accesses(path) - defined_names(path)
        touched = accesses | private_imports(path)
        assert not touched or package_of(path) == "trainer", f"{path} touches {touched}"
        used |= accesses
    assert used == {name for names in USED.values() for name in names}


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner, name)
        for table in (USED, PUBLIC_NAMES_OF_PRIVATE_LOOPS)
        for owner, names in table.items()
        for name in names
    ],
)
def test_lightning_still_has_what_the_trainer_builds_on(owner: str, name: str) -> None:
    part = LIGHTNING[owner]
    for step in name.split("."):
        assert hasattr(part, step), f"this Lightning's {owner} has no {name}"
        part = getattr(part, step)


def test_importing_the_package_imports_nothing_heavy_that_may_be_missing() -> None:
    heavy = ["wandb", "sklearn", "tensorboard", "pandas", "datasets"]
    code = f"import sys, leadfl_pl; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
