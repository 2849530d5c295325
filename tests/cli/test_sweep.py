"""Sweeps: the flags that wandb makes are ours, a grid runs without a server and loses no run."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from leadfl_pl.cli import sweep as sweeps
from leadfl_pl.cli.federated import FederatedCLI

SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
FLAGS = ["--config=configs/quickstart.yaml", "--trainer.federation.local_epochs=1"]
RULES = ("median", "krum")
COMMAND = ["python", "${program}", "fit", *FLAGS, "--trainer.max_epochs=1", "${args}"]


def wandb_command(sweep: dict, point: dict) -> list[str]:
    """The command line that wandb's own code makes of a point."""
    from wandb.sdk.launch.sweeps import utils

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
    """A sweep of runs of one short round."""
    parameters = {key.replace("__", "."): {"values": list_} for key, list_ in values.items()}
    return {"program": "cli.py", "method": "grid", "parameters": parameters, "command": COMMAND}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a sweep in the project's folder, into ``out``."""
    monkeypatch.chdir(ROOT)

    def call(sweep: Any, *flags: str) -> int:
        text = sweep if isinstance(sweep, str) else yaml.safe_dump(sweep, sort_keys=False)
        (tmp_path / "sweep.yaml").write_text(text)
        return sweeps.main([str(tmp_path / "sweep.yaml"), "-o", str(tmp_path / "out"), *flags])

    return call


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_the_flags_of_wandb_are_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(path.read_text())
    monkeypatch.setattr(FederatedCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(FederatedCLI, "_run_subcommand", lambda self, subcommand: None)
    [(key, given)] = sweep["parameters"].items()
    seen = []
    for point in sweeps.grid(sweep):
        command = wandb_command(sweep, point)
        flags = command[command.index("cli.py") + 1 :]
        assert flags[-1:] == sweeps.flags(point)  # ours are the same
        seen.append(FederatedCLI(args=flags).config.fit[key])
    assert seen == given["values"]


def test_a_grid_runs_without_a_server_and_finished_points_are_kept(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sweep = yaml.safe_load((ROOT / "configs/sweeps/alpha.yaml").read_text())
    sweep["parameters"]["model.init_args.defense.init_args.alpha"]["values"] = [0.0, 0.4]
    flags = ["--trainer.max_epochs=1", "--trainer.federation.local_epochs=1"]
    assert run(sweep, *flags) == 0
    assert [row["run"] for row in table(tmp_path / "out")] == ["alpha=0.0", "alpha=0.4"]
    assert (tmp_path / "out/comparison.png").stat().st_size > 0
    assert "alpha=0.4" in capsys.readouterr().out
    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/*/logs/**/rounds.csv")}
    assert run(sweep, *flags) == 0
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert len(written) == 2


def test_values_that_are_paths_give_a_row_each(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sweep = small_sweep(
        trainer__federation__aggregator=[
            f"configs/aggregators/{r}.yaml" for r in ("median", "krum")
        ],
        trainer__federation__attack=[f"configs/attacks/{a}.yaml" for a in ("alie", "ipm")],
    )
    assert run(sweep) == 0
    names = [
        f"aggregator={rule}.yaml, attack={attack}.yaml"
        for rule in RULES
        for attack in ("alie", "ipm")
    ]
    assert [row["run"] for row in table(tmp_path / "out")] == names
    assert len({row["command"] for row in table(tmp_path / "out")}) == 4


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"rule": ["x/a b", "y/a b", "x/a_b"]}, ["rule=x/a b", "rule=y/a b", "rule=x/a_b"]),
        ({"rule": ["a/x.yaml", "b/x.yaml"]}, ["rule=a/x.yaml", "rule=b/x.yaml"]),
        ({"m.lr": [1], "d.lr": [2, 3]}, ["m.lr=1, d.lr=2", "m.lr=1, d.lr=3"]),
        (
            {"a": ["1,b=2", "1"], "b": ["2,b=3", "3"]},
            ["a=1,b=2, b=2,b=3", "a=1,b=2, b=3", "a=1, b=2,b=3", "a=1, b=3"],
        ),
    ],
)
def test_points_with_other_values_have_other_names(values: dict, names: list[str]) -> None:
    parameters = {key: {"values": list_} for key, list_ in values.items()}
    assert sweeps.labels(list(sweeps.grid({"method": "grid", "parameters": parameters}))) == names


def test_a_point_runs_again_with_other_arguments(run: Callable[..., int], tmp_path: Path) -> None:
    sweep = small_sweep(model__lr=[0.1])
    assert run(sweep) == run(sweep, "--seed_everything=3") == 0
    assert len([folder for folder in (tmp_path / "out").iterdir() if folder.is_dir()]) == 2
    assert [row["seed"] for row in table(tmp_path / "out")] == ["3"]


def test_a_run_of_a_sweep_has_one_device_whatever_its_config_says(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "auto.yaml").write_text("trainer: {devices: auto}\n")
    sweep = small_sweep(model__lr=[0.1])
    assert run(sweep, f"--config={tmp_path / 'auto.yaml'}") == 0
    assert run(sweep, "--trainer.devices=2") == 2
    assert "trainer.devices must be 1, since the runs share the machine" in capsys.readouterr().err


def test_a_sweep_whose_run_fails_says_which(run, capsys: pytest.CaptureFixture) -> None:
    assert run(small_sweep(model__lr=[1e25])) == 1
    assert "failed: lr=1e+25, seed 0: " in capsys.readouterr().err


GRID = small_sweep(model__lr=[0.1])


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("", "sweep.yaml must be a mapping with method and parameters, got nothing"),
        ("[1]", "sweep.yaml must be a mapping with method and parameters, got list"),
        ("a: [", "sweep.yaml must be YAML: while parsing"),
        ("a: {{ alpha }}", "sweep.yaml must be YAML: "),
        ("a: 2020-13-01", "sweep.yaml must be YAML: month must be in 1..12"),
        (GRID | {"method": "bayes"}, "method must be grid without a server, got bayes"),
        ({"method": "grid"}, "parameters must be a mapping of keys to values, got None"),
        (GRID | {"parameters": [1]}, "parameters must be a mapping of keys to values, got [1]"),
        (GRID | {"parameters": {"a": 1}}, "parameters.a must have value or values, got 1"),
        (GRID | {"parameters": {"a": {"min": 0}}}, "parameters.a must have value or values, got"),
        (GRID | {"parameters": {"a": {"values": []}}}, "a.values must be a list of values, got []"),
        (GRID | {"parameters": {"a": {"values": 3}}}, "a.values must be a list of values, got 3"),
        (GRID | {"parameters": {"a": {"values": [3]}}}, "--a=3 is no setting"),
        (
            GRID | {"parameters": {"model.lr": {"values": [1, "1"]}}},
            "got the same for lr=1, seed 0",
        ),
        (GRID | {"program": "no.py"}, "command must run leadfl-pl fit or cli.py fit, got"),
        (GRID | {"command": ["leadfl-pl", "test", "${args}"]}, "must run leadfl-pl fit"),
        (GRID | {"command": COMMAND[:-1]}, "command must be a list with ${args} in it"),
        (GRID | {"command": "python x ${args}"}, "command must be a list with ${args} in it"),
        (GRID | {"command": [*COMMAND, "${envvar:X}"]}, "command must have no ${envvar:X}"),
    ],
)
def test_a_sweep_that_cannot_run_is_one_sentence(
    sweep: Any, message: str, run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(sweep) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    assert sweeps.main(["none.yaml"]) == 2
    assert capsys.readouterr().err == "error: cannot read none.yaml: No such file or directory\n"


def test_an_output_that_is_a_file_is_refused_before_any_run(run, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").touch()
    assert run(GRID) == 2
    assert "error: --output must be a folder, got" in capsys.readouterr().err
