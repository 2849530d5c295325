"""Sweeps: the flags that wandb makes are ours, a grid runs without a server and loses no run."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from leadfl_pl import ConfigError
from leadfl_pl.cli import sweep as sweeps
from leadfl_pl.cli.federated import FederatedCLI

SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
PROGRAM = """
import json, shlex, sys
from pathlib import Path

flags = dict(part[2:].split("=", 1) for part in sys.argv[1:])
folder = Path(flags["trainer.default_root_dir"], "logs/version_0")
folder.mkdir(parents=True)  # fails if this point has run before
(folder / "rounds.csv").write_text("round,round/malicious_sampled,val/clean_accuracy\\n0,6,0.5\\n")
(folder / "accuracy.png").touch()
started = {"command": shlex.join(["python", *sys.argv]), "seed": 0, "commit": None}
(folder / "run.json").write_text(json.dumps(started | {"clients_per_round": 10}))
"""


def wandb_command(sweep: dict, point: dict) -> list[str]:
    """The command line that wandb's own code makes of a point."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    run = {"args": {k: {"value": v} for k, v in point.items()}, "program": sweep["program"]}
    macros = utils.create_sweep_command_args(run)
    command = utils.create_sweep_command(sweep["command"])
    filled: list[str] = []
    for part in command:
        filled += macros["args"] if part == "${args}" else [part]
    return [part.replace("${program}", sweep["program"]) for part in filled]


def table(folder: str | Path) -> list[dict[str, str]]:
    with Path(folder, "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def small_sweep(**values: list[Any]) -> dict[str, Any]:
    """A sweep over a program that writes a record and trains nothing."""
    Path("program.py").write_text(PROGRAM)
    parameters = {key.replace("__", "."): {"values": list_} for key, list_ in values.items()}
    return {"program": "program.py", "method": "grid", "parameters": parameters}


def run(sweep: Any, *flags: str) -> int:
    text = sweep if isinstance(sweep, str) else yaml.safe_dump(sweep, sort_keys=False)
    Path("sweep.yaml").write_text(text)
    return sweeps.main(["sweep.yaml", "-o", "out", *flags])


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_the_flags_of_wandb_are_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(path.read_text())
    monkeypatch.setattr(FederatedCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(FederatedCLI, "_run_subcommand", lambda self, subcommand: None)
    seen = []
    for point in sweeps.grid(sweep):
        command = wandb_command(sweep, point)
        assert command[-1] == sweeps.command(sweep, point)[-1]  # ours are the same flags
        flags = command[command.index("cli.py") + 1 :]
        config = FederatedCLI(args=flags).config.fit
        seen.append(config.model.init_args.defense.init_args.alpha)
    assert seen == sweep["parameters"]["model.init_args.defense.init_args.alpha"]["values"]


def test_a_grid_runs_without_a_server_and_finished_points_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load((ROOT / "configs/sweeps/alpha.yaml").read_text())
    sweep["parameters"]["model.init_args.defense.init_args.alpha"]["values"] = [0.0, 0.4]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(sweep))
    flags = ["--trainer.max_epochs=1", "--trainer.federation.local_epochs=1"]
    arguments = [str(tmp_path / "two.yaml"), "-o", str(tmp_path / "out of two"), *flags]
    assert sweeps.main(arguments) == 0
    assert [row["run"] for row in table(tmp_path / "out of two")] == ["alpha=0.0", "alpha=0.4"]
    assert (tmp_path / "out of two/comparison.png").stat().st_size > 0
    assert "alpha=0.4" in capsys.readouterr().out
    files = list((tmp_path / "out of two").glob("alpha*/logs/**/rounds.csv"))
    written = {path: path.stat().st_mtime_ns for path in files}
    assert sweeps.main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert len(written) == 2


def test_values_that_are_paths_give_a_row_and_a_flat_folder_each(
    capsys: pytest.CaptureFixture,
) -> None:
    sweep = small_sweep(
        trainer__federation__aggregator=["configs/aggregators/median.yaml", "configs/fedavg.yaml"],
        trainer__federation__attack=["configs/attacks/alie.yaml", "configs/attacks/ipm.yaml"],
    )
    assert run(sweep) == 0
    names = [
        f"aggregator={rule}.yaml, attack={attack}.yaml"
        for rule in ("median", "fedavg")
        for attack in ("alie", "ipm")
    ]
    assert [row["run"] for row in table("out")] == names
    assert len({row["command"] for row in table("out")}) == 4
    folders = sorted(p.name for p in Path("out").iterdir() if p.is_dir())
    assert folders == sorted(name.replace(", ", ",") for name in names)
    assert capsys.readouterr().out.count("50.0 %") == 4
    assert run(sweep) == 0  # runs nothing again


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"rule": ["x/a b", "y/a b", "x/a_b"]}, ["rule=x/a b", "rule=y/a b", "rule=x/a_b"]),
        ({"rule": ["a/x.yaml", "b/x.yaml"]}, ["rule=a/x.yaml", "rule=b/x.yaml"]),
        ({"a": [[1, 2], "..", "x" * 300]}, ["a=[1, 2]", "a=..", f"a={'x' * 300}"]),
        ({"m__lr": [1], "d__lr": [2, 3]}, ["m.lr=1, d.lr=2", "m.lr=1, d.lr=3"]),
        (
            {"a": ["1,b=2", "1"], "b": ["2,b=3", "3"]},
            ["a=1,b=2, b=2,b=3", "a=1,b=2, b=3", "a=1, b=2,b=3", "a=1, b=3"],
        ),
    ],
)
def test_points_with_other_values_are_other_rows(values: dict, names: list[str]) -> None:
    sweep = small_sweep(**values)
    assert run(sweep) == 0
    rows = table("out")
    assert [row["run"] for row in rows] == names
    assert len({row["command"] for row in rows}) == len(names)
    assert len([p for p in Path("out").iterdir() if p.is_dir()]) == len(names)


def test_two_points_with_the_same_flags_are_two_rows_of_one_run() -> None:
    assert run(small_sweep(alpha=[1, "1"])) == 0
    assert [row["run"] for row in table("out")] == ["alpha=1", "alpha=1"]


def test_a_point_runs_again_with_other_arguments_only() -> None:
    sweep = small_sweep(alpha=[0.1])
    assert run(sweep, "--note=it's one") == 0
    assert run(sweep, "--note=it's one") == 0
    assert run(sweep, "--note=it's two") != 0  # PROGRAM fails where it has run


def test_the_command_is_the_sweeps_own() -> None:
    sweep = small_sweep(alpha=[0.1]) | {"command": ["${env}", "python", "-m", "program", "${args}"]}
    del sweep["program"]
    assert sweeps.command(sweep, {"alpha": 0.1})[1:] == ["-m", "program", "--alpha=0.1"]
    assert run(sweep) == 0


def test_what_is_installed_beside_python_needs_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    name = Path(sys.executable).name
    (executable, _) = sweeps.command({"command": [name, "${args}"]}, {"alpha": 0.1})
    assert executable == str(Path(sys.executable).parent / name)


def test_a_sweep_whose_runs_fail_ends_with_their_status(capsys: pytest.CaptureFixture) -> None:
    sweep = small_sweep(alpha=[0.1])
    Path("program.py").write_text("raise SystemExit(7)")
    assert run(sweep) == 7
    assert "--trainer.default_root_dir=out/alpha=0.1" in capsys.readouterr().err


GRID = {"method": "grid", "parameters": {"a": {"values": [1]}}, "program": "program.py"}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("", "sweep.yaml must be a mapping with method and parameters, got nothing"),
        ("[1]", "sweep.yaml must be a mapping with method and parameters, got list"),
        ("3", "sweep.yaml must be a mapping with method and parameters, got int"),
        ("a: [", "sweep.yaml must be YAML: while parsing"),
        ("a: 2020-13-01", "sweep.yaml must be YAML: month must be in 1..12"),
        (GRID | {"method": "bayes"}, "method must be grid without a server, got bayes"),
        ({"method": "grid"}, "parameters must be a mapping of keys to values, got None"),
        (GRID | {"parameters": [1]}, "parameters must be a mapping of keys to values, got [1]"),
        (GRID | {"parameters": {"a": 1}}, "parameters.a must have value or values, got 1"),
        (GRID | {"parameters": {"a": None}}, "parameters.a must have value or values, got None"),
        (GRID | {"parameters": {"a": {"min": 0}}}, "parameters.a must have value or values, got"),
        (GRID | {"parameters": {"a": {"values": []}}}, "a.values must be a list of values, got []"),
        (GRID | {"parameters": {"a": {"values": 3}}}, "a.values must be a list of values, got 3"),
        (GRID | {"parameters": {"a": {"values": None}}}, "must be a list of values, got None"),
        ({k: GRID[k] for k in ("method", "parameters")}, "program must be a file, seen from here, "
                                                         "got None"),
        (GRID | {"program": "no.py"}, "program must be a file, seen from here, got no.py"),
        (GRID | {"program": [1]}, "program must be a file, seen from here, got [1]"),
        (GRID | {"command": ["python", "${program}"]}, "command must be a list with ${args} in it"),
        (GRID | {"command": "python x ${args}"}, "command must be a list with ${args} in it"),
        (GRID | {"command": ["no-such", "${args}"]}, "command must start with a program that is "
                                                     "there, got no-such"),
        (GRID | {"command": ["python", "${envvar:X}", "${args}"]}, "command must have no "
                                                                   "${envvar:X}"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_run_is_one_sentence(
    sweep: Any, message: str, capsys: pytest.CaptureFixture
) -> None:
    Path("program.py").write_text(PROGRAM)
    assert run(sweep) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not Path("out").exists()


def test_a_file_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    assert sweeps.main(["none.yaml"]) == 2
    assert capsys.readouterr().err == "error: cannot read the sweep none.yaml: No such file or "\
        "directory\n"  # fmt: skip


def test_a_program_that_leaves_no_run_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    sweep = small_sweep(a=[1])
    Path("program.py").write_text("")
    assert run(sweep) == 2
    assert "out/a=1 must be a run's folder, with rounds.csv or logs" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused_before_any_run(capsys: pytest.CaptureFixture) -> None:
    Path("out").touch()
    assert run(small_sweep(a=[1])) == 2
    assert capsys.readouterr().err == "error: --output must be a folder, got out: File exists\n"


def test_what_is_no_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="method must be grid without a server, got bayes"):
        list(sweeps.grid({"method": "bayes", "parameters": {}}))
