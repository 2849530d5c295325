"""What the README says, done as it says."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from leadfl_pl.cli.main import main

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SHELL = "".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)).replace("\\\n", " ")
COMMANDS = re.findall(r"(?:cli\.py|leadfl-pl) ((?:fit|init) .+)", SHELL)


@pytest.fixture
def _clipped_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The defense of the README, in a file of the current folder."""
    (source,) = [block for block in PYTHON if "class ClippedUpdate" in block]
    (tmp_path / "clipped_update.py").write_text(source)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield
    sys.modules.pop("clipped_update", None)


@pytest.mark.usefixtures("_clipped_update")
def test_a_defense_in_one_file_is_used_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (command,) = [command for command in COMMANDS if "clipped_update" in command]
    flags = command.replace("configs/", f"{ROOT}/configs/").split()
    monkeypatch.setattr("sys.argv", ["leadfl-pl", *flags, "--trainer.max_epochs=1"])
    assert main() == 0
    assert list(Path("runs/quickstart/logs").glob("*/rounds.csv"))


@pytest.mark.usefixtures("_clipped_update")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_a_command_are_those_of_the_program(
    command: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = shlex.split(command.replace("configs/", f"{ROOT}/configs/"), comments=True)
    monkeypatch.setattr("sys.argv", ["leadfl-pl", *flags])
    if flags[0] == "init":
        assert main() == 0
        written = Path(flags[1]).read_text()
    else:
        sys.argv.append("--print_config")
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        written = capsys.readouterr().out
    assert {"model", "data", "trainer"} <= yaml.safe_load(written).keys()


def test_every_command_with_flags_is_tried() -> None:
    assert len(COMMANDS) == len(re.findall(r"cli\.py|leadfl-pl (?!sweep|report|experiment)", SHELL)) >= 15


def test_the_client_works_in_ones_own_project(capsys: pytest.CaptureFixture) -> None:
    (source,) = [block for block in PYTHON if "from lightning import Trainer" in block]
    exec(compile(source, "README.md", "exec"), {})
    printed = float(capsys.readouterr().out.strip().splitlines()[-1].strip("tensor()"))
    assert printed > 0.5


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/[\w/.]+\.yaml", README))))
def test_the_configs_it_names_are_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.]+)\)", README))))
def test_the_files_it_links_to_are_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_changelog_and_the_citation_are_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.findall(r"^## \[(.+)\] - (.+)$", changelog, re.MULTILINE)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest == (citation["version"], citation["date-released"])
    assert f'version = "{newest[0]}"' in (ROOT / "pyproject.toml").read_text()
