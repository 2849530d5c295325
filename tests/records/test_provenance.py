"""What a number needs beside it: a command that can be pasted, and the processor."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from leadfl_pl.records.provenance import commit, processor, provenance


@pytest.mark.parametrize(
    ("script", "start"),
    [
        ("cli.py", ["python", "cli.py"]),
        ("scripts/my run.py", ["python", "scripts/my run.py"]),
        ("/somewhere/bin/leadfl-pl", ["leadfl-pl"]),
    ],
)
def test_the_command_gives_a_shell_the_same_arguments(
    script: str, start: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["fit", "--data.split={class_path: Shards}", "--note=it's $HOME", "a b"]
    monkeypatch.setattr("sys.argv", [script, *arguments])
    assert shlex.split(provenance(0)["command"]) == [*start, *arguments]


def test_linux_names_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2 GHz\nflags\t: avx2\n"
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: str(path) == "/proc/cpuinfo")
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: cpuinfo)
    assert processor() == "Some CPU @ 2 GHz"


def test_elsewhere_python_names_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: False)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert processor() == "arm64"


def test_the_record_names_the_processor_and_its_vector_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX3")
    record = provenance(0)
    assert (record["processor"], record["vector_instructions"]) == (processor(), "AVX3")


def test_two_states_of_a_changed_checkout_are_two_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "leadfl_pl/records/__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    for name in ("results.csv", "configs/a.yaml", "configs/experiments/a.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr("leadfl_pl.records.provenance.__file__", str(file.parent / "provenance.py"))
    clean = commit()
    (tmp_path / "results.csv").write_text("new\n")
    (tmp_path / "configs/experiments/a.yaml").write_text("new\n")
    assert commit() == clean  # what runs is the same
    (tmp_path / "configs/a.yaml").write_text("new\n")
    config = commit()
    (tmp_path / "configs/a.yaml").write_text("old\n")
    file.write_text("a = 1\n")
    one = commit()
    file.write_bytes(b"a = '\xe9'\n")  # no UTF-8
    other = commit()
    new = tmp_path / "leadfl_pl/defenses/new.py"
    new.parent.mkdir(parents=True)
    new.write_text("a = 1\n")
    added = commit()
    new.write_text("a = 2\n")
    changed = commit()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    assert len({clean, config, one, other, added, changed}) == 6
    assert {c[:41] for c in (config, one, other, added, changed)} == {f"{clean}+"}
