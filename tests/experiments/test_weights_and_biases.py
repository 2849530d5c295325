"""What Weights & Biases gets of an experiment's runs, read from the files that it would sync."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from multiprocessing import Queue
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from conftest import ROOT
from wandb.apis.public import sweeps as server
from wandb.proto import wandb_internal_pb2 as messages
from wandb.wandb_agent import Agent

from leadfl_pl.cli.experiment import main

HEADER, BLOCK = 7, 32768  # of a log file of LevelDB, in which wandb keeps its records
FULL, LAST = 1, 4


def content(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file, as wandb's own messages."""
    data, part, at = path.read_bytes(), b"", HEADER
    while at + HEADER <= len(data):
        if (left := -at % BLOCK) and left < HEADER:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        at += HEADER + size
        part += data[at - size : at]
        if kind in (FULL, LAST):
            yield messages.Record.FromString(part)
            part = b""


def updates(records: list[Any], kind: str) -> dict[str, Any]:
    """What the records say under each key in the end."""
    items = [item for r in records if r.HasField(kind) for item in getattr(r, kind).update]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_runs_are_grouped_and_named_with_nested_config_summaries_and_media() -> None:
    logger = "trainer.logger"
    experiment = {
        "base": str(ROOT / "configs/quickstart.yaml"),
        "set": {
            "trainer.max_epochs": 2,
            "trainer.federation.local_epochs": 1,
            logger: "lightning.pytorch.loggers.WandbLogger",
            f"{logger}.offline": True,
            f"{logger}.project": "leadfl",
        },
        "axes": {"defense": [{"label": "LeadFL, strong", "model.defense.alpha": 0.8}]},
        "seeds": [0, 1],
    }
    Path("alpha.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    assert main(["run", "alpha.yaml", "--jobs", "1"]) == 0
    runs = [list(content(path)) for path in sorted(Path("wandb").glob("offline-run-*/*.wandb"))]
    assert len(runs) == 2
    started = [next(r.run for r in records if r.HasField("run")) for records in runs]
    assert {run.display_name for run in started} == {f"LeadFL, strong, seed {s}" for s in (0, 1)}
    assert {run.run_group for run in started} == {"alpha"}
    for records in runs:
        config = updates(records, "config")
        assert config["model"]["init_args"]["defense"]["init_args"]["alpha"] == 0.8
        assert config["federation"]["aggregator"]["class_path"].endswith("MultiKrum")
        numbers = updates(records, "summary")
        assert {"min", "max", "last"} == set(numbers["val/backdoor_accuracy"])
        assert numbers["val/clean_accuracy"]["last"] == numbers["main accuracy"]
        assert "report/path" in numbers
        assert numbers["accuracy/_type"] == "images/separated"
        assert any(r.HasField("exit") for r in records)  # else the next run would be in it


@pytest.mark.skipif(not hasattr(server, "_agent_heartbeat"), reason="another agent's insides")
def test_the_agent_of_wandb_runs_a_point_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cli.py", "configs"):
        Path(name).symlink_to(ROOT / name)
    sweep = yaml.safe_load(Path("configs/sweeps/alpha.yaml").read_text())
    [alpha] = sweep["parameters"]
    short = ["--trainer.max_epochs=1", "--trainer.federation.local_epochs=1"]
    sweep["command"] = [*sweep["command"][:-1], *short, sweep["command"][-1]]
    point = {"type": "run", "run_id": "p1", "program": sweep["program"]}
    left = [point | {"args": {alpha: {"value": 0.1}}}]
    # in place of the server, and of what asks it
    monkeypatch.setattr(server, "_sweep_with_runs", lambda *a: {"config": yaml.safe_dump(sweep)})
    monkeypatch.setattr(server, "_register_agent", lambda *a, **k: {"id": "agent"})
    monkeypatch.setattr(server, "_agent_heartbeat", lambda *a: [left.pop()] if left else [])
    monkeypatch.setattr(wandb, "Api", lambda: None)
    monkeypatch.setattr(Agent, "POLL_INTERVAL", 0.2)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    names = {
        "PATH": path,
        "WANDB_MODE": "offline",
        "WANDB_SWEEP_ID": "s1",
        "WANDB_DIR": os.getcwd(),
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them
        monkeypatch.setenv(name, "")
    agent = Agent(None, Queue(), "s1", count=1)
    agent.run()
    assert (agent._finished, agent._failed) == (1, 0)
    [records] = [list(content(path)) for path in Path("wandb").glob("offline-run-*-p1/*.wandb")]
    run = next(r.run for r in records if r.HasField("run"))
    assert (run.run_id, run.sweep_id) == ("p1", "s1")
    assert updates(records, "config")["model"]["init_args"]["defense"]["init_args"]["alpha"] == 0.1
    assert "val/backdoor_accuracy_avg" in updates(records, "summary")  # which the sweep minimizes
