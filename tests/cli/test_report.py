"""Comparisons of runs: every run has a row, and what cannot be read is one sentence."""

from __future__ import annotations

import csv
import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from leadfl_pl.cli.report import comparison, main
from leadfl_pl.records.rounds import read_run

ROWS = "round,round/malicious_sampled,val/clean_accuracy\n0,6,0.25\n1,0,{accuracy}\n"
STARTED = {"command": "python cli.py fit", "seed": 0, "commit": None, "clients_per_round": 10}


def write_run(folder: str, rows: str = ROWS.format(accuracy=0.5), **started: object) -> Path:
    path = Path(folder)
    path.mkdir(parents=True)
    (path / "rounds.csv").write_text(rows)
    (path / "run.json").write_text(json.dumps(STARTED | started))
    return path


def table() -> list[dict[str, str]]:
    with Path("out/summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def report(*folders: str) -> int:
    return main([*folders, "-o", "out"])


def failure(capsys: pytest.CaptureFixture, *folders: str) -> str:
    assert report(*folders) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_folders_with_the_same_end_are_told_apart_by_more_of_their_path(
    capsys: pytest.CaptureFixture,
) -> None:
    for name, accuracy in (("a/0", 0.5), ("b/0", 0.6), ("b/1", 0.7)):
        write_run(f"runs/{name}", ROWS.format(accuracy=accuracy))
    assert report("runs/a/0", "runs/b/0", "runs/b/1/") == 0
    rows = [(row["run"], row["main accuracy"]) for row in table()]
    assert rows == [("a/0", "0.5"), ("b/0", "0.6"), ("b/1", "0.7")]
    out = capsys.readouterr().out
    assert all(text in out for text in ("a/0", "b/0", "b/1", "50.0 %", "60.0 %", "70.0 %"))


def test_one_name_is_enough_where_it_tells_runs_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("leadfl", "none"):
        write_run(f"runs/{name}")
    monkeypatch.chdir("runs/leadfl")
    assert report(".", "../none", "../../runs/none") == 0
    assert [row["run"] for row in table()] == ["leadfl", "none"]


def test_without_a_backdoor_there_is_no_column_and_no_panel_for_it(
    capsys: pytest.CaptureFixture,
) -> None:
    write_run("ipm")
    assert report("ipm") == 0
    assert "backdoor" not in Path("out/summary.csv").read_text() + capsys.readouterr().out
    assert b"backdoor" not in Path("out/comparison.svg").read_bytes()
    write_run("backdoor", ROWS.format(accuracy="0.5").replace("clean", "backdoor"))
    assert report("ipm", "backdoor") == 0
    assert [row["backdoor final"] for row in table()] == ["", "0.5"]
    assert "nan" not in capsys.readouterr().out


def test_rejected_updates_are_shown_if_there_are_any_and_always_written(
    capsys: pytest.CaptureFixture,
) -> None:
    header = "round,round/malicious_sampled,round/rejected"
    write_run("none", f"{header}\n0,0,0\n1,0,0\n")
    write_run("some", f"{header},round/failed\n0,0,2\n1,0,3,4\n")
    assert report("none") == 0
    assert "rejected" not in capsys.readouterr().out
    assert float(table()[0]["rejected updates"]) == float(table()[0]["failed clients"]) == 0
    assert report("none", "some") == 0
    assert [float(row["rejected updates"]) for row in table()] == [0, 5]
    assert [float(row["failed clients"]) for row in table()] == [0, 4]
    out = capsys.readouterr().out
    assert "rejected" in out
    assert "failed" in out


def test_the_words_of_a_table_stay_whole_in_80_columns() -> None:
    header = "round,round/malicious_sampled,round/malicious_selected,val/clean_accuracy"
    rows = f"{header},val/backdoor_accuracy\n0,6,5,0.5,0.9\n1,0,0,0.5,0.8\n"
    names = ("leadfl", "none")
    console = Console(width=80, record=True, file=StringIO())
    console.print(comparison([(name, read_run(write_run(name, rows))) for name in names]))
    words = set(re.findall(r"[^\s┃│]+", console.export_text()))
    assert {"accuracy", "malicious", "backdoor", "lifespan", "attackers", "censored)"} <= words


def test_the_newest_version_is_read_and_what_has_no_number_is_not(
    capsys: pytest.CaptureFixture,
) -> None:
    for version, accuracy in (("version_9", 0.3), ("version_10", 0.4), ("version_x", 0.5)):
        write_run(f"run/logs/{version}", ROWS.format(accuracy=accuracy))
    assert report("run") == 0
    assert table()[0]["main accuracy"] == "0.4"
    assert "run: version_10, the newest of 3" in capsys.readouterr().out


def test_all_commits_of_a_resumed_run_are_named() -> None:
    earlier = [{"commit": "a", "command": "fit x"}, {"commit": "b", "command": "fit x --last"}]
    write_run("run", commit="b", command="fit x --last", earlier=earlier)
    write_run("installed")
    assert report("run", "installed") == 0
    assert (table()[0]["commit"], table()[0]["command"]) == ("a, b", "fit x, fit x --last")
    assert table()[1]["commit"] == ""  # outside of a checkout


def test_a_folder_without_a_run_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    sentence = "run must be a run's folder, with rounds.csv or logs/version_N in it"
    assert failure(capsys, "run") == sentence
    write_run("run/logs/version_x")
    assert failure(capsys, "run") == sentence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run/run.json must be JSON, got Expecting value"),
        ("{", "run/run.json must be JSON, got Expecting property name"),
        ("[]", "run/run.json must have command, seed, commit, clients_per_round, got no command"),
        (json.dumps({"seed": 0}), "clients_per_round, got no command, commit, clients_per_round"),
        (json.dumps(STARTED | {"clients_per_round": "x"}), "per_round must be int, got 'x'"),
        (json.dumps(STARTED | {"command": 3}), "run/run.json: command must be str, got 3"),
    ],
)  # fmt: skip
def test_a_bad_run_json_is_one_sentence(
    text: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    (write_run("run") / "run.json").write_text(text)
    assert message in failure(capsys, "run")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "run/rounds.csv must have a row for each round, got none"),
        (b"round,round/malicious_sampled\n", "must have a row for each round, got none"),
        (b"\x89PNG\xff\xfe\n\x00", "run/rounds.csv must hold numbers below its column names: line"),
        (b"round,x\n0,1\n1,one\n", "must hold numbers below its column names: line 3 does not"),
        (b"round\n0,1\n", "must hold numbers below its column names: line 2 does not"),
        (b"round\n0\n", "rounds.csv must have a number for round/malicious_sampled in every row, "
                        "got the columns round"),
        (b"round/malicious_sampled,round\n0,0\n1\n", "must have a number for round in every row"),
        (b"round/malicious_sampled,round\n0,nan\n", "must have a number for round in every row"),
    ],
)  # fmt: skip
def test_a_bad_rounds_csv_is_one_sentence(
    data: bytes, message: str, capsys: pytest.CaptureFixture
) -> None:
    (write_run("run") / "rounds.csv").write_bytes(data)
    assert message in failure(capsys, "run")


def test_a_record_without_its_other_half_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    (write_run("run") / "run.json").unlink()
    assert failure(capsys, "run") == "cannot read run/run.json: No such file or directory"


def test_an_output_that_is_a_file_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    write_run("run")
    Path("out").touch()
    assert failure(capsys, "run") == "--output must be a folder, got out: File exists"
    Path("out").unlink()
    Path("out/summary.csv").mkdir(parents=True)
    assert "Is a directory: 'out/summary.csv'" in failure(capsys, "run")


def test_a_newer_version_without_rounds_is_said(capsys: pytest.CaptureFixture) -> None:
    write_run("run/logs/version_0")
    Path("run/logs/version_1").mkdir()
    assert report("run") == 0
    assert "run: version_0, the newest of 1; version_1 has no rounds" in capsys.readouterr().out
