"""Sweeps: the flags that wandb makes are ours, and a grid runs without a server."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from leadfl_pl import ConfigError
from leadfl_pl.cli import sweep as sweeps
from leadfl_pl.cli.federated import FederatedCLI

SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))


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
    arguments = [str(tmp_path / "two.yaml"), "-o", str(tmp_path / "out"), *flags]
    assert sweeps.main(arguments) == 0
    with (tmp_path / "out/summary.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == ["alpha=0.0", "alpha=0.4"]
    assert (tmp_path / "out/comparison.png").stat().st_size > 0
    assert "alpha=0.4" in capsys.readouterr().out
    written = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("alpha*/logs/**/rounds.csv")
    }
    assert sweeps.main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert len(written) == 2


def test_what_is_no_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="method must be grid without a server, got bayes"):
        list(sweeps.grid({"method": "bayes", "parameters": {}}))
    with pytest.raises(ConfigError, match=r"parameters\.a must have value or values, got"):
        list(sweeps.grid({"method": "grid", "parameters": {"a": {"min": 0, "max": 1}}}))
