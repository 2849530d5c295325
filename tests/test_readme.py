"""What the README says, done as it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from leadfl_pl.cli.main import main

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_a_defense_in_one_file_is_used_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = [block for block in PYTHON if "class ClippedUpdate" in block]
    (tmp_path / "clipped_update.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    (command,) = re.findall(
        r"^python cli\.py (fit .*clipped_update.*)$", README, flags=re.MULTILINE
    )
    flags = command.replace("configs/", f"{ROOT}/configs/").split()
    try:
        assert main([*flags, "--trainer.max_epochs=1"]) == 0
    finally:
        sys.modules.pop("clipped_update", None)
    assert list(Path("runs/quickstart/logs").glob("*/rounds.csv"))


def test_the_client_works_in_ones_own_project(capsys: pytest.CaptureFixture) -> None:
    (source,) = [block for block in PYTHON if "from lightning import Trainer" in block]
    exec(compile(source, "README.md", "exec"), {})
    printed = float(capsys.readouterr().out.strip().splitlines()[-1].strip("tensor()"))
    assert printed > 0.5


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/[\w/.]+\.yaml", README))))
def test_the_configs_it_names_are_there(path: str) -> None:
    assert (ROOT / path).is_file()
