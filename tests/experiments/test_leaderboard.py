"""The leaderboards are those that the committed numbers make."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from leadfl_pl.experiments.leaderboard import COST, best_settings, leaderboard
from leadfl_pl.experiments.over_seeds import over_seeds
from leadfl_pl.experiments.results import read_results
from leadfl_pl.experiments.spec import read_experiment

FRONTS = ("front_fashionmnist", "front_digits")


@pytest.mark.parametrize("name", FRONTS)
def test_a_committed_leaderboard_is_made_of_the_committed_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # runs are known by their commands, which name files
    experiment = read_experiment(Path(f"configs/experiments/{name}.yaml"))
    results = read_results(Path("results") / name, experiment, allow_mixed=True)
    again = leaderboard(over_seeds(results, interquartile=False), "defense")
    assert Path(f"results/{name}/leaderboard.md").read_text() == again


def test_the_readme_shows_it() -> None:
    board = (ROOT / "results/front_fashionmnist/leaderboard.md").read_text()
    assert f"\n\n{board}\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", FRONTS)
def test_no_affordable_setting_of_a_method_is_better_than_its_best(name: str) -> None:
    table = pd.read_csv(ROOT / f"results/{name}/table.csv").set_index("defense", drop=False)
    best = best_settings(table, "defense")
    least = table["main accuracy"].iloc[0] - COST
    for label, row in table.iterrows():
        method = str(label).partition(", ")[0]
        if row["main accuracy"] >= least:
            assert table.loc[best[method], "backdoor average"] <= row["backdoor average"]
    assert set(best) == {str(label).partition(", ")[0] for label in table.index}
