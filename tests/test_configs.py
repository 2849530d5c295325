"""Every shipped configuration runs: two rounds on tiny data, through the command line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import leadfl_pl as fl
from leadfl_pl.aggregators.pre_aggregation import PreStep
from leadfl_pl.cli.main import main

CONFIGS = ROOT / "configs"
DATA = {  # what stands for the real data
    "fashionmnist.yaml": ["--data=tiny.TinyImages", "--data.batch_size=8"],
    "released.yaml": ["--data=tiny.TinyImages", "--data.batch_size=8"],
    "cifar10.yaml": ["--data=tiny.TinyColours", "--data.batch_size=8"],
    "cifar100.yaml": [
        "--data=tiny.TinyHundred",
        "--trainer.federation.num_clients=32",
        "--trainer.federation.num_malicious=8",
        "--trainer.federation.clients_per_round=6",
        "--trainer.federation.schedule.num_malicious=1",
        "--trainer.enable_checkpointing=false",
    ],
}
EXPERIMENTS = sorted(p.name for p in CONFIGS.glob("*.yaml"))
PARTS = {
    "defenses": "--model.defense",
    "aggregators": "--trainer.federation.aggregator",
    "attacks": "--trainer.federation.attack",
    "schedules": "--trainer.federation.schedule",
    "splits": "--data.split",
    "diagnostics": "--diagnostics",
}
FOR_LARGER_IMAGES = [CONFIGS / "attacks" / "dba.yaml"]  # do not fit quickstart.yaml's 8 x 8
TINY = [
    "--trainer.max_epochs=2",
    "--trainer.federation.local_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.default_root_dir=run",
]


def run(config: str, *flags: str) -> dict:
    flags = (*TINY, *DATA.get(config, []), *flags)
    assert main(["fit", f"--config={CONFIGS / config}", *flags]) == 0
    (folder,) = Path("run/logs").iterdir()
    written = {"rounds.csv", "metrics.csv", "accuracy.png", "split.png", "run.json", "config.yaml"}
    assert written <= {p.name for p in folder.iterdir()}
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    shutil.rmtree("run")
    return saved


def names_another(value: object) -> bool:
    """A class or a file, or a list with some, has its own name in a run's config.yaml."""
    if isinstance(value, list):
        return any(isinstance(item, dict) for item in value)
    return isinstance(value, str) and "." in value


@pytest.mark.parametrize("text", ["configs", "docs/catalogue.md"])
def test_every_method_has_a_config_and_a_place_in_the_catalogue(text: str) -> None:
    files = [p for p in [ROOT / text, *(ROOT / text).rglob("*.yaml")] if p.is_file()]
    named = set(re.findall(r"\w+", " ".join(p.read_text() for p in files)))
    kinds = (fl.Aggregator, PreStep, fl.Attack, fl.ClientDefense, fl.Schedule, fl.Split)
    bases = {kind.__name__ for kind in kinds} | {"AttackWrapper", "Natural"}  # the last: with data
    classes = {n for n in fl.__all__ if isinstance(getattr(fl, n), type)}
    methods = {n for n in classes if issubclass(getattr(fl, n), kinds)} - bases
    assert methods - named == set()
    assert len(methods) > 50


@pytest.mark.parametrize("config", EXPERIMENTS)
def test_the_experiment_runs(config: str) -> None:
    run(config)


@pytest.mark.parametrize(
    "part",
    [p for folder in PARTS for p in sorted((CONFIGS / folder).glob("*.yaml"))],
    ids=lambda p: f"{p.parent.name}/{p.stem}",
)
def test_the_part_replaces_one_key_of_an_experiment(part: Path) -> None:
    experiment = "fashionmnist.yaml" if part in FOR_LARGER_IMAGES else "quickstart.yaml"
    saved = run(experiment, f"{PARTS[part.parent.name]}={part}")
    federation = saved["trainer"]["federation"]
    used = {
        "defenses": saved["model"]["init_args"]["defense"],
        "aggregators": federation["aggregator"],
        "attacks": federation["attack"],
        "schedules": federation["schedule"],
        "splits": saved["data"]["init_args"]["split"],
        "diagnostics": saved["diagnostics"],
    }[part.parent.name]
    settings = yaml.safe_load(part.read_text())
    if not isinstance(settings, list):  # diagnostics may be several
        used, settings = [used], [settings]
    for one, expected in zip(used, settings, strict=True):
        assert one["class_path"] == expected["class_path"]
        for key, value in expected.get("init_args", {}).items():
            if not names_another(value):
                assert one["init_args"][key] == value


@pytest.mark.parametrize(
    "federation", sorted((CONFIGS / "federations").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_federation_replaces_that_of_an_experiment(federation: Path) -> None:
    saved = run("quickstart.yaml", f"--trainer.federation={federation}")
    for key, value in yaml.safe_load(federation.read_text()).items():
        if not names_another(value):
            assert saved["trainer"]["federation"][key] == value


@pytest.mark.parametrize("data", sorted((CONFIGS / "data").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_data_replaces_that_of_an_experiment(data: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["fit", f"--config={CONFIGS}/quickstart.yaml", f"--data={data}", "--print_config"])
    used, settings = (yaml.safe_load(text) for text in (capsys.readouterr().out, data.read_text()))
    assert used["data"]["class_path"] == settings["class_path"]
    assert used["data"]["init_args"]["batch_size"] == settings["init_args"]["batch_size"]


def test_every_config_is_of_a_tested_kind() -> None:
    tested = {CONFIGS / e for e in EXPERIMENTS}
    for folder in PARTS:
        tested |= set((CONFIGS / folder).glob("*.yaml"))
    rest = {p.relative_to(CONFIGS).parts[0] for p in CONFIGS.rglob("*.yaml") if p not in tested}
    assert rest == {"data", "experiments", "federations", "sweeps"}  # above; test_sweep.py


def test_every_config_lists_only_classes_of_the_package() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            if "class_path: torchvision.datasets." in line and path.parent.name == "data":
                continue
            if "class_path:" in line:
                assert line.split("class_path:")[1].strip().startswith("leadfl_pl."), path
