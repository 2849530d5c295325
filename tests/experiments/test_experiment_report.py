"""The report of an experiment: its numbers are those of the runs, and nothing is dropped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from written_runs import LEADFL, NONE, two_defenses, write_cell

from leadfl_pl.cli.experiment_report import main
from leadfl_pl.experiments.jobs import Job
from leadfl_pl.experiments.over_seeds import estimate
from leadfl_pl.records.rounds import read_run, summary

DIVERGED = "FloatingPointError: round 3: it is not finite"


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time: test_report_page.py has what is drawn."""
    if "figures" not in request.node.name:
        monkeypatch.setattr("leadfl_pl.experiments.report.draw", lambda *_: [])


def report(*arguments: str) -> int:
    return main(["runs/small", "-o", "out", *arguments])


def failure(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main([*(arguments or ("runs/small",)), "-o", "out"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_a_row_has_the_mean_over_its_seeds_with_the_ends_of_its_interval(
    capsys: pytest.CaptureFixture,
) -> None:
    two_defenses()
    assert report() == 0
    assert re.search(r"none +│ 60.0 \[50.0, 70.0\] │ 90.0", capsys.readouterr().out)
    table = pd.read_csv("out/table.csv").set_index("defense")
    none = table.loc["none"]
    # of 2 seeds, a quarter of all resamples has one of them twice: those are the ends
    ends = none[["main accuracy low", "main accuracy", "main accuracy high"]]
    assert ends.to_list() == pytest.approx([0.5, 0.6, 0.7])
    assert none["backdoor average"] == pytest.approx(0.9)
    assert (none["seeds"], none["finished"], none["states"]) == (2, 2, "2 finished")
    assert (none["bursts"], none["censored bursts"]) == (2, 2)
    assert "60.0 [50.0, 70.0]" in Path("out/table.md").read_text()
    assert "1.0 [1.0, 1.0] (2 of 2 censored)" in Path("out/table.md").read_text()


def test_the_interquartile_mean_leaves_out_the_outliers() -> None:
    for seed, end in enumerate((0.1, 0.5, 0.6, 0.7, 0.6)):
        write_cell(NONE, seed, [(end, 1.0)])
    assert report("--interquartile") == 0
    assert pd.read_csv("out/table.csv")["main accuracy"].item() == pytest.approx((0.5 + 1.2) / 3)
    assert "interquartile" in Path("out/table.md").read_text()


def test_the_numbers_of_committed_runs_are_those_of_their_summaries() -> None:
    expected = {}
    for seed in range(5):
        run = read_run(ROOT / f"results/quickstart_seeds/seed_{seed}")
        expected[seed] = summary(run.rows, run.majority)
        folder = write_cell(NONE, seed, [(0.0, 0.0)])
        shutil.rmtree(folder / "logs")
        for name in ("rounds.csv", "run.json"):
            shutil.copy(run.folder / name, folder / name)
    assert report() == 0
    runs = pd.read_csv("out/runs.csv").set_index("seed")
    for seed, numbers in expected.items():
        assert runs.loc[seed, list(numbers)].to_dict() == numbers
    table = pd.read_csv("out/table.csv")
    mean = np.mean([numbers["backdoor average"] for numbers in expected.values()])
    assert table["backdoor average"].item() == pytest.approx(mean, rel=1e-12)


def test_numbers_estimated_together_are_those_estimated_alone() -> None:
    values = np.random.default_rng(1).random((5, 3))
    together = np.stack(estimate(values))
    alone = np.stack([np.stack(estimate(column)) for column in values.T], axis=1)
    assert np.array_equal(together, alone)


def test_a_single_seed_has_no_interval() -> None:
    write_cell(NONE, 0, [(0.5, 1.0)])
    assert report() == 0
    assert pd.read_csv("out/table.csv")["main accuracy low"].isna().all()
    assert re.search(r"\| none +\| 1 +\| +50\.0 \|", Path("out/table.md").read_text())


def test_what_has_not_finished_is_in_every_table(capsys: pytest.CaptureFixture) -> None:
    two_defenses()
    write_cell(NONE, 2, error=DIVERGED)
    write_cell({"defense": "LDP"}, 0, error="OSError: x_y & 5 % | full")
    write_cell({"defense": "LDP"}, 1, status="stopped")
    write_cell({"defense": "SAM"}, 0, error="no well-formed update in round 9: FedAvg needs n >= 1")
    assert report() == 0
    for name in ("table.md", "table.tex", "report.html"):
        text = Path("out", name).read_text()
        assert "2 of 3: 2 finished, 1 diverged" in text
        assert "0 of 2: 1 failed, 1 stopped" in text
        assert "0 of 1: 1 diverged" in text
    table = pd.read_csv("out/table.csv").set_index("defense")
    assert (table.loc["none", "finished"], table.loc["LDP", "finished"]) == (2, 0)
    assert np.isnan(table.loc["LDP", "main accuracy"])
    assert f"diverged: none, seed 2: {DIVERGED}" in capsys.readouterr().err
    assert DIVERGED in Path("out/report.html").read_text()


def test_a_number_that_some_seeds_lack_says_of_how_many_it_is() -> None:
    write_cell(NONE, 0, [(0.5, 0.8), (0.5, 0.4)])
    write_cell(NONE, 1, [(0.5, 0.8), (0.5, 0.9)])  # the backdoor does not decay
    assert report() == 0
    assert "1.0 (1 of 2 seeds)" in Path("out/table.md").read_text()


def test_runs_of_several_commits_are_refused_unless_allowed(capsys: pytest.CaptureFixture) -> None:
    write_cell(NONE, 0, [(0.5, 1.0)])
    write_cell(NONE, 1, [(0.5, 1.0)], commit="decade")
    assert failure(capsys) == (
        "runs/small must have runs of one commit, got c0ffee (1), decade (1): run those of one "
        "again, or take all with --allow-mixed"
    )
    assert not Path("out").exists()
    assert report("--allow-mixed") == 0
    assert "runs of several commits: c0ffee (1), decade (1)" in Path("out/table.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hash": None}, None),
        (
            {"labels": {"rule": "z"}},
            "runs/small must have runs of the same axes, got rule for none-1",
        ),
        ({"seed": 0}, "runs/small must have one run of none, seed 0, got none-0 and none-1"),
    ],
)
def test_records_that_make_no_table_are_one_sentence(
    change: dict, message: str | None, capsys: pytest.CaptureFixture
) -> None:
    write_cell(NONE, 0, [(0.5, 1.0)])
    path = write_cell(NONE, 1, [(0.5, 1.0)]) / "cell.json"
    record = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    message = message or f"{path} must have experiment, labels, settings, seed, hash"
    assert failure(capsys).startswith(message)


def test_a_folder_without_runs_and_an_output_that_is_a_file_are_one_sentence(
    capsys: pytest.CaptureFixture,
) -> None:
    Path("empty").mkdir()
    assert failure(capsys, "empty").startswith("empty must have folders of runs with cell.json")
    write_cell(NONE, 0, [(0.5, 1.0)])
    Path("out").touch()
    assert failure(capsys) == "--output must be a folder, got out: File exists"


def experiment(**content: object) -> None:
    """A file with a cell for ``none`` and one for ``LDP``, of which the first has been run."""
    Path("a.yaml").touch()
    axes = {"defense": [{"label": name, "model.defense": name} for name in ("none", "LDP")]}
    text = {"base": "a.yaml", "axes": axes, "seeds": [0]} | content
    Path("small.yaml").write_text(yaml.safe_dump(text))
    flags = "--model.defense=none --trainer.devices=1 --seed_everything=0"
    command = f"leadfl-pl fit --config=a.yaml {flags}"
    write_cell(NONE, 0, [(0.5, 0.9)], command=command)


def test_the_file_adds_missing_runs_published_numbers_and_figures() -> None:
    published = {"defense": "none", "main accuracy": 0.885, "source": "a paper, Table I"}
    experiment(published=[published], figures=["rounds"])
    write_cell(LEADFL, 0, [(0.1, 0.1)])  # of an earlier form of the file
    assert main(["small.yaml", "--runs", "runs", "-o", "out"]) == 0
    table = pd.read_csv("out/table.csv").set_index("defense")
    assert list(table.index) == ["none", "LDP"]
    assert table.loc["LDP", "states"] == "1 missing"
    assert table["main accuracy published"].fillna(0).to_list() == [0.885, 0]
    text = Path("out/table.md").read_text()
    assert "Published: a paper, Table I." in text
    assert "not shown, as no cell of small is theirs: LeadFL,alpha=0.4-0" in text
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["rounds.png"]


def test_a_run_is_found_by_its_hash_where_its_command_is_written_otherwise(monkeypatch) -> None:
    experiment()
    folder = write_cell({"defense": "an old name"}, 0, [(0.5, 0.3)], hash="1dp", command="fit")
    write_cell({"defense": "no cell's"}, 0, [(0.5, 0.3)])
    monkeypatch.setattr(
        "leadfl_pl.cli.experiment_report.plan",
        lambda name, cells, *_: [Job(folder, cell, [], 1, {"hash": "1dp"}) for cell in cells],
    )
    assert main(["small.yaml", "--runs", "runs", "-o", "out", "--collect"]) == 0
    runs = pd.read_csv("out/runs.csv").set_index("defense")
    assert list(runs["status"]) == ["finished", "finished"]
    assert runs.loc["LDP", "hash"] == "1dp"
    text = Path("out/table.md").read_text()
    assert "not shown, as no cell of small is theirs: nocell's-0" in text
    assert json.loads(Path("out/1dp/cell.json").read_text())["labels"] == {"defense": "LDP"}


def test_of_two_runs_of_a_command_the_one_of_todays_configuration_counts(monkeypatch) -> None:
    experiment()
    command = json.loads(Path("runs/small/none-0/cell.json").read_text())["command"]
    write_cell({"defense": "none again"}, 0, [(0.5, 0.3)], hash="now", command=command)
    monkeypatch.setattr("leadfl_pl.cli.experiment_report.hashes", lambda *_: ["now"])
    assert main(["small.yaml", "--runs", "runs", "-o", "out"]) == 0
    assert list(pd.read_csv("out/runs.csv")["hash"].fillna("")) == ["now", ""]


def test_runs_before_an_edit_of_a_config_are_refused_unless_allowed(monkeypatch, capsys) -> None:
    experiment()
    monkeypatch.setattr("leadfl_pl.experiments.results.code", lambda: "c0ffee+edit")
    monkeypatch.setattr("leadfl_pl.cli.experiment_report.hashes", lambda *_: ["edited"])
    arguments = ["small.yaml", "--runs", "runs", "-o", "out"]
    assert main(arguments) == 2
    assert "got others for none, seed 0: a config, or the pac" in capsys.readouterr().err
    assert main([*arguments, "--allow-mixed"]) == 0
    assert "runs of other settings than today's: none, seed 0" in Path("out/table.md").read_text()
    monkeypatch.setattr("leadfl_pl.experiments.results.code", lambda: "another commit")
    assert main(arguments) == 0  # the settings of the package may be others


def test_before_a_run_has_finished_there_is_a_table_and_no_leaderboard() -> None:
    experiment(figures=["front"])
    file = Path("runs/small/none-0/cell.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "stopped"}))
    assert main(["small.yaml", "--runs", "runs", "-o", "out"]) == 0
    assert list(pd.read_csv("out/table.csv")["states"]) == ["1 stopped", "1 missing"]
    assert not Path("out/leaderboard.md").exists()
    command = "leadfl-pl fit --config=a.yaml --model.defense=LDP --trainer.devices=1"
    write_cell({"defense": "LDP"}, 0, [(0.5, 0.1)], command=f"{command} --seed_everything=0")
    assert main(["small.yaml", "--runs", "runs", "-o", "out"]) == 0
    assert list(pd.read_csv("out/table.csv")["states"]) == ["1 stopped", "1 finished"]
    assert not Path("out/leaderboard.md").exists()  # with nothing to compare with


def test_runs_before_and_after_a_change_of_own_code_are_refused_unless_allowed(capsys) -> None:
    for seed, digest in enumerate(("aaa", "bbb")):
        write_cell(NONE, seed, [(0.5, 0.3)], own_code={"mine.Mine": digest})
    assert failure(capsys).startswith("runs/small must have runs of one version of mine.Mine, got")
    assert report("--allow-mixed") == 0
    assert "runs before and after a change of mine.Mine" in Path("out/table.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"published": [{"defence": "none"}]}, "published must have entries with keys of defense,"),
        ({"published": [{"defense": "FL-WBC"}]}, "published must have entries with labels of the"),
        ({"published": [{"main accuracy": 0.1}] * 2}, "published must have main accuracy once for"),
        (
            {"published": [{"main accuracy": 89.3}]},
            "published.main accuracy must be <= 1, got main accuracy = 89.3",
        ),
        (
            {"published": [{"main accuracy": "89 %"}]},
            "published.main accuracy must be a finite number, got main accuracy = 89 %",
        ),
        ({"figures": ["pie"]}, "figures must be of rounds, front, heatmap, got pie"),
        (
            {"figures": ["heatmap"]},
            "figures: heatmap needs two axes of several values, got defense",
        ),
    ],
)
def test_published_numbers_or_figures_that_cannot_be_are_one_sentence(
    content: dict, message: str, capsys: pytest.CaptureFixture
) -> None:
    experiment(**content)
    assert failure(capsys, "small.yaml", "--runs", "runs").startswith(message)


def test_collected_runs_give_the_same_report_and_name_no_place_of_this_machine() -> None:
    two_defenses()
    write_cell(NONE, 2, error=f"OSError: no such file: '{Path.home()}/secret/data.csv'")
    assert report("--collect") == 0
    texts = [path.read_text() for path in Path("out").glob("*/*")]
    assert len(texts) == 4 * 3 + 1
    assert not any(str(place) in text for text in texts for place in (Path.cwd(), Path.home()))
    assert any("'data.csv'" in text for text in texts)
    assert main(["out", "-o", "again"]) == 0
    assert Path("again/table.csv").read_bytes() == Path("out/table.csv").read_bytes()


def test_an_experiments_file_finds_collected_runs_whose_command_named_a_place(
    capsys: pytest.CaptureFixture,
) -> None:
    experiment(set={"data.data_dir": "/mnt/images/fashion"})
    record = Path("runs/small/none-0/cell.json")
    named = record.read_text().replace("a.yaml ", "a.yaml --data.data_dir=/mnt/images/fashion ")
    record.write_text(named)
    assert main(["small.yaml", "--runs", "runs", "--collect"]) == 2
    refusal = "--collect copies records: --output must not be runs/small, where they are"
    assert capsys.readouterr().err == f"error: {refusal}\n"
    assert main(["small.yaml", "--runs", "runs", "--collect", "-o", "results/small"]) == 0
    assert "/mnt" not in Path("results/small/none-0/cell.json").read_text()
    assert main(["small.yaml", "--runs", "results", "-o", "again"]) == 0
    assert Path("again/table.csv").read_bytes() == Path("results/small/table.csv").read_bytes()


def test_two_runs_whose_commands_differ_by_a_place_are_told_apart() -> None:
    folders = [{"data.data_dir": f"/mnt/{name}/images"} for name in "ab"]
    experiment(axes={"place": [{"label": d["data.data_dir"][5], **d} for d in folders]})
    for folder in folders:
        place = folder["data.data_dir"]
        flags = f"--data.data_dir={place} --trainer.devices=1 --seed_everything=0"
        command = f"leadfl-pl fit --config=a.yaml {flags}"
        write_cell({"place": place[5]}, 0, [(0.5, 0.9)], command=command)
    assert main(["small.yaml", "--runs", "runs", "-o", "out"]) == 0
    assert list(pd.read_csv("out/table.csv")["states"]) == ["1 finished", "1 finished"]


def test_latex_has_as_many_cells_in_every_row() -> None:
    two_defenses()
    write_cell({"defense": "a_b & 5 %"}, 0, error="x")
    assert report() == 0
    text = Path("out/table.tex").read_text()
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}
    assert r"a\_b \& 5 \%" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
