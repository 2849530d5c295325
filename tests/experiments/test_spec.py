"""Experiments as data: their cells, their names, and files that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from leadfl_pl import ConfigError
from leadfl_pl.cli.federated import resolve
from leadfl_pl.experiments.jobs import Job, own_code, plan
from leadfl_pl.experiments.spec import Experiment, read_experiment

SHIPPED = sorted([*(ROOT / "configs/experiments").glob("*.yaml"), *ROOT.glob("results/*/*.yaml")])
QUICK = str(ROOT / "configs/quickstart.yaml")


def jobs_of(experiment: Experiment) -> list[Job]:
    return plan(experiment.name, experiment.cells(), Path("runs"), resolve)


def written(**content: Any) -> Path:
    path = Path("small.yaml")
    path.write_text(yaml.safe_dump({"base": QUICK} | content, sort_keys=False))
    return path


def axis(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"axes": {"defense": list(entries)}}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_entry_of_a_shipped_experiment_is_a_configuration(path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(path.parent)  # of a class that is there for it
    experiment = read_experiment(path)
    cells = list(experiment.each_level())
    jobs = plan(experiment.name, cells, Path("runs"), resolve)
    assert len(jobs) == len(cells) == 1 + sum(len(a) - 1 for a in experiment.axes.values())
    for axis, levels in experiment.axes.items():
        assert {cell.labels[axis] for cell in cells} == {level.label for level in levels}


def test_a_list_of_values_is_as_many_entries() -> None:
    path = written(
        axes={
            "defense": [
                {"label": "none", "model.defense": "NoDefense"},
                {"label": "LDP", "model.defense": "LDP", "model.defense.scale": [0.1, 0.2]},
            ],
            "lr": [{"model.lr": [0.1, 0.2]}],
        },
        seeds=[3, 1],
    )
    experiment = read_experiment(path)
    names = [str(cell) for cell in experiment.cells()]
    assert names[:3] == ["none, lr=0.1, seed 3", "none, lr=0.2, seed 3", "LDP, scale=0.1, lr=0.1, seed 3"]  # fmt: skip # noqa: E501
    assert len(names) == 12
    assert [cell.seed for cell in experiment.cells()] == [3] * 6 + [1] * 6
    last = list(experiment.cells())[-1]
    assert last.arguments[1:] == [
        "--model.defense=LDP", "--model.defense.scale=0.2", "--model.lr=0.2", "--trainer.devices=1",
    ]  # fmt: skip


def test_paths_are_seen_from_the_file_and_names_made_of_them() -> None:
    Path("parts").mkdir()
    Path("parts/mine.yaml").write_text("class_path: leadfl_pl.LDP\n")
    Path("there").mkdir()
    text = {"base": QUICK, **axis({"model.defense": "../parts/mine.yaml", "model.lr": 0.2})}
    Path("there/small.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    [cell] = read_experiment(Path("there/small.yaml")).cells()
    assert cell.labels == {"defense": "mine, lr=0.2"}
    assert cell.settings == {"model.defense": "parts/mine.yaml", "model.lr": 0.2}


def test_a_label_can_be_a_number_or_a_word_that_yaml_takes_for_no() -> None:
    path = written(**axis({"label": 0}, {"label": False}))
    labels = [cell.labels for cell in read_experiment(path).cells()]
    assert labels == [{"defense": "0"}, {"defense": "False"}]


def test_what_is_set_for_all_is_overridden_by_an_axis() -> None:
    path = written(set={"model.lr": 0.3, "trainer.max_epochs": 2}, **axis({"model.lr": 0.2}, {}))
    assert [cell.settings["model.lr"] for cell in read_experiment(path).cells()] == [0.2, 0.3]


def test_what_is_set_for_all_below_a_class_is_kept_where_an_axis_chooses_the_class() -> None:
    path = written(set={"model.defense.scale": 0.3}, **axis({"model.defense": "LDP"}))
    [cell] = read_experiment(path).cells()
    assert resolve(cell.fit)["model"]["init_args"]["defense"]["init_args"]["scale"] == 0.3


def test_the_folder_is_that_of_the_configuration_and_not_of_how_it_is_written() -> None:
    entries = ({"model.lr": 0.2}, {"model.lr": 0.1})
    before = jobs_of(read_experiment(written(**axis(*entries))))
    again = written(**axis({"label": "slow", "model.lr": "1e-1"}), set={"trainer.logger": False})
    [job] = jobs_of(read_experiment(again))
    assert job.folder == before[1].folder
    assert job.folder != before[0].folder
    assert job.arguments[-1] == "--trainer.logger=true"  # else there is nothing to report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seed": [1]}, "must have the keys base, set, axes, .*, got seed"),
        ({"base": "no.yaml"}, "base must be a config, seen from that file, got base = no.yaml"),
        ({"seeds": [0, 1, 0]}, "seeds must have each value once, got 0 twice"),
        ({"seeds": []}, r"seeds must be a list of seeds, got seeds = \[\]"),
        ({"seeds": [-1]}, "seeds must be >= 0, got seeds = -1"),
        ({"axes": [1]}, r"axes must have a list of entries for each axis, got \[1\]"),
        (axis(), "axes must have a list of entries for each axis"),
        ({"axes": {"defense": ["LDP"]}}, "axes.defense must have entries of keys, got LDP"),
        (axis({"model.defense": "no.yaml"}), "model.defense must be a config, seen .*got no.yaml"),
        (axis({"model.lr": 1.0}, {"model.lr": 1.0}), "must have each value once, got lr=1.0 twice"),
        (axis({"model.lr": []}), "axes.defense must have values for model.lr, got none"),
        (
            {"set": {"config": QUICK}, **axis({"config": QUICK})},
            "config must be in one place, got set and axes.defense",
        ),
        (
            {"axes": {"a": [{"model.lr": 0.1}], "b": [{"model.lr": 0.2}]}},
            "model.lr must be in one place, got axes.a and axes.b",
        ),
        ({"set": {"seed_everything": 5}}, "must have seeds in place of seed_everything"),
        (axis({"ckpt_path": "a.ckpt"}), "must have trainer.federation.start_from in place of ckpt"),
        ({"figures": "rounds"}, "figures must be a list, got figures = rounds"),
        ({"published": {"a": 1}}, "published must be a list, got published = {'a': 1}"),
        ({"set": [1]}, r"set must be keys with values, got set = \[1\]"),
    ],
)
def test_a_file_that_is_no_experiment_is_one_sentence(content: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_experiment(written(**content))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"model.defens": "LDP"}], "small, defens=LDP, seed 0: .*model.defens"),
        ([{"model.lr": "fast"}], "small, lr=fast, seed 0: .*lr.*fast"),
        ([{"trainer.devices": 2}], "small, devices=2, seed 0: trainer.devices must be 1, since"),
        ([{"trainer.max_epochs": None}], "trainer.max_epochs must be >= 1, got None"),
        ([{"model.lr": 0.2}, {"model.lr": "2e-1"}], "different configurations, got the same for "
         "lr=0.2, seed 0 and lr=2e-1, seed 0"),
    ],
)  # fmt: skip
def test_a_cell_that_is_none_is_one_sentence_before_anything_runs(entries, message) -> None:
    with pytest.raises(ConfigError, match=message):
        jobs_of(read_experiment(written(**axis(*entries))))


def test_own_code_is_the_file_that_defines_the_class(tmp_path, monkeypatch) -> None:
    package = tmp_path / "exported"
    package.mkdir()
    (package / "__init__.py").write_text("from .mine import Mine")
    (package / "mine.py").write_text("class Mine: pass")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"defense": {"class_path": "exported.Mine"}}
    before = own_code(config)
    (package / "mine.py").write_text("class Mine: changed = True")
    assert own_code(config)["exported.Mine"] != before["exported.Mine"]
