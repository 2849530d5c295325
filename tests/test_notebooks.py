"""Every notebook runs, has its outputs, and says the same as its script."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def images(notebook: nbformat.NotebookNode) -> list[int]:
    """How many figures each code cell shows."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sum("image/png" in output.get("data", {}) for output in c.outputs) for c in code]


@notebooks
def test_it_runs_and_shows_the_figures_that_it_was_committed_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    if "flwr" in path.read_text():
        pytest.importorskip("flwr")
        pytest.importorskip("ray")
    committed = images(notebook)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()  # in tmp_path
    assert images(notebook) == committed
    assert sum(committed) > 0


@notebooks
def test_its_script_has_the_same_cells(path: Path) -> None:
    assert cells(path) == cells(path.with_suffix(".py"))


def test_every_script_has_its_notebook() -> None:
    assert sorted(p.with_suffix(".ipynb") for p in NOTEBOOKS[0].parent.glob("*.py")) == NOTEBOOKS
