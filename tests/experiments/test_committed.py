"""Committed runs come out again, at the newest code, from the commands beside them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT

from leadfl_pl.cli.main import main
from leadfl_pl.records.provenance import processor

RUNS = ROOT / "results/quickstart"
ACCURACIES = ["val/clean_accuracy", "val/backdoor_accuracy", "round/malicious_selected"]


@pytest.mark.parametrize("defense", ["none", "LeadFL"])
def test_a_committed_run_has_the_same_accuracies_from_its_command(
    defense: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells = {p.parent: json.loads(p.read_text()) for p in RUNS.glob("*/cell.json")}
    (found,) = [
        (folder, shlex.split(cell["command"]))
        for folder, cell in cells.items()
        if (cell["labels"]["defense"], cell["seed"]) == (defense, 0)
    ]
    folder, (_, *command) = found
    made_on = json.loads((folder / "run.json").read_text())["processor"]
    if processor() != made_on:
        pytest.skip(f"made on {made_on}: another processor rounds sums otherwise")
    monkeypatch.chdir(ROOT)
    assert main([*command, f"--trainer.default_root_dir={tmp_path}"]) == 0
    again, committed = (
        pd.read_csv(path / "rounds.csv")[ACCURACIES]
        for path in (tmp_path / "logs/version_0", folder)
    )
    pd.testing.assert_frame_equal(again, committed, rtol=0, atol=0)


def printed(config: str, capsys: pytest.CaptureFixture) -> dict:
    with pytest.raises(SystemExit):
        main(["fit", f"--config={ROOT}/configs/{config}", "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_released_and_corrected_are_what_they_are_said_to_be(capsys: pytest.CaptureFixture) -> None:
    """What the rules measure, how evaluation is done, and the trigger on the images' scale."""
    for experiment, base, space, mode, high in (
        ("table1", "fashionmnist.yaml", "params", "eval", 1.0),
        ("table1_released", "released.yaml", "state", "train", 2.8214867115),
    ):
        text = (ROOT / f"configs/experiments/{experiment}.yaml").read_text()
        assert yaml.safe_load(text)["base"] == f"../{base}"
        config = printed(base, capsys)
        federation = config["trainer"]["federation"]
        assert federation["distance_space"] == space
        assert config["model"]["init_args"]["evaluation_mode"] == mode
        assert federation["attack"]["init_args"]["high"] == high
        assert federation["carry_momentum"] == (space == "state")
