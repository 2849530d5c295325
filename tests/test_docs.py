"""What the README and the documentation say, done as they say."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from conftest import ROOT

from leadfl_pl.cli.main import main

GENERATED = ROOT / "docs" / "results.md"
PLUGINS = {ROOT / "docs/guides" / f"{name}.md" for name in ("flower", "nvflare")}  # tests/interop
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - PLUGINS - {GENERATED})]
TEXT = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    """The arguments of the program in each of its commands."""
    shell = "".join(blocks(text, "bash")).replace("\\\n", " ")
    return re.findall(r"(?:cli\.py|leadfl-pl) (.+)", shell)


ALL = "".join(TEXT.values())
PYTHON = [(name, block) for name, text in TEXT.items() for block in blocks(text, "python")]
FILES = {
    name: block
    for language in ("python", "yaml")
    for block in blocks(ALL, language)
    for name in re.findall(r"\A# (\w+\.(?:py|yaml))\n", block)
}
CLASSES = [name.removesuffix(".py") for name in FILES if name.endswith(".py")]
COMMANDS = sorted({*commands(ALL)})
FIT = [command for command in COMMANDS if command.startswith(("fit", "init"))]
OTHER = [command for command in COMMANDS if command not in FIT]
SHORT = ["--trainer.max_epochs=1", "--trainer.federation.local_epochs=1"]


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A checkout's configs, and the files of the pages beside them."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield
    for name in CLASSES:
        sys.modules.pop(name, None)


def call(monkeypatch: pytest.MonkeyPatch, command: str, *more: str) -> int:
    flags = shlex.split(command, comments=True)
    monkeypatch.setattr("sys.argv", ["leadfl-pl", *flags, *more])
    return main()


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize("command", FIT)
def test_the_flags_of_a_command_are_those_of_the_program(
    command: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command.startswith("init"):
        assert call(monkeypatch, command) == 0
        written = Path(command.split()[1]).read_text()
    else:
        with pytest.raises(SystemExit) as end:
            call(monkeypatch, command, "--print_config")
        assert end.value.code == 0
        written = capsys.readouterr().out
    assert {"model", "data", "trainer"} <= yaml.safe_load(written).keys()


class ParsedError(Exception):
    """The arguments are the program's."""


@pytest.mark.parametrize("command", OTHER)
def test_the_arguments_of_a_tool_are_those_that_it_takes(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = ArgumentParser.parse_known_args

    def parse_only(*args: Any, **kwargs: Any) -> NoReturn:
        assert parse(*args, **kwargs)[1] == []
        raise ParsedError

    monkeypatch.setattr(ArgumentParser, "parse_known_args", parse_only)
    with pytest.raises(ParsedError):
        call(monkeypatch, command)


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(
    "command", [c for c in FIT if any(re.search(rf"\b{name}\.", c) for name in CLASSES)]
)
def test_a_class_in_one_file_is_used_from_the_command_line(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, command, *SHORT, "--trainer.logger=false") == 0


def test_every_class_in_a_file_is_used() -> None:
    assert len(CLASSES) >= 6
    assert all(f"{name}." in "".join(FIT) for name in CLASSES)


@pytest.mark.usefixtures("_folder")
def test_the_tour_goes_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    tour = [c for c in commands(TEXT["docs/tour.md"]) if "quickstart" in c]
    for command in tour:
        assert call(monkeypatch, command, *(SHORT if command.startswith("fit") else [])) == 0
    assert Path("runs/comparison/comparison.png").is_file()
    header = Path("runs/effect/logs/version_0/rounds.csv").read_text().splitlines()[0]
    assert "attack_effect/norm" in header


@pytest.mark.parametrize(("page", "source"), PYTHON, ids=[name for name, _ in PYTHON])
def test_a_python_block_runs(page: str, source: str, capsys: pytest.CaptureFixture) -> None:
    exec(compile(source, page, "exec"), {"__name__": "block"})
    if "print(" in source:  # of an accuracy
        printed = capsys.readouterr().out.strip().splitlines()[-1]
        assert float(printed.strip("tensor()")) > 0.5


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/[\w/.]+\.yaml", ALL))))
def test_the_configs_they_name_are_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.]+)\)", TEXT["README.md"]))))
def test_the_files_that_the_readme_links_to_are_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_readme_is_short() -> None:
    assert len(TEXT["README.md"].splitlines()) < 150


def test_the_changelog_and_the_citation_are_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.findall(r"^## \[(.+)\] - (.+)$", changelog, re.MULTILINE)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest == (citation["version"], citation["date-released"])
    assert f'version = "{newest[0]}"' in (ROOT / "pyproject.toml").read_text()
