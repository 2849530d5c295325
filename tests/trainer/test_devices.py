"""Several processes, and several nodes, give the bits of one; a lost one stops all the others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from devices_job import RUNS, parts_of_the_runs
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.accelerators import MPSAccelerator
from tiny import SmallImages, small_client, small_trainer

import leadfl_pl as fl
from leadfl_pl.trainer.devices import with_processes
from leadfl_pl.trainer.strategy import LOST, FederatedStrategy, RankLostError, lost_ranks

JOB = str(ROOT / "tests" / "trainer" / "devices_job.py")
SOME = ["none", "leadfl", "skewed", "flame", "dba", "batch statistics"]


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True, scope="module")
def _no_process_outlives_the_tests() -> Iterator[None]:
    yield
    for process in STARTED:
        if process.poll() is None:
            process.terminate()  # torchrun passes it on


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start(
    folder: Path,
    names: list[str],
    ranks: int = 1,
    *launch: str,
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen:
    command = [sys.executable]
    if ranks > 1 or launch:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *launch]
        command += [] if launch else ["--master-port", free_port()]
    process = subprocess.Popen(
        [*command, JOB, str(folder), *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"} | (variables or {}),
    )  # fmt: skip
    STARTED.append(process)
    return process


def output(process: subprocess.Popen) -> str:
    """What the process printed; it must end well, and leave its process group."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-4000:]
    assert "outlives" not in out
    return out


def results(process: subprocess.Popen) -> dict[str, str]:
    out = output(process)
    (line,) = [text for text in out.splitlines() if text.startswith("RESULTS ")]
    return json.loads(line.removeprefix("RESULTS "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("devices")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, str]:
    return results(start(folder, [*RUNS, "sparsefed:2"]))


@pytest.fixture(scope="module")
def two(folder: Path, one: dict[str, str]) -> dict[str, str]:
    names = [*RUNS, "sparsefed:last", "leadfl released:2", "neurotoxin:2", "a3fl:2"]
    return results(start(folder, names, 2))


@pytest.mark.parametrize("seam", [fl.ClientDefense, fl.Aggregator, fl.Attack])
def test_every_class_of_the_package_is_among_the_runs(seam: type) -> None:
    used = {type(part) for part in parts_of_the_runs()}
    public = {getattr(fl, name) for name in fl.__all__}
    classes = {c for c in public if isinstance(c, type) and issubclass(c, seam)}
    assert classes - used == {seam, fl.AttackWrapper} & classes  # the bases


def test_the_runs_are_all_different(one: dict[str, str]) -> None:
    assert len(set(one.values())) == len(one)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_bits_of_one(
    name: str, one: dict[str, str], two: dict[str, str]
) -> None:
    assert two[name] == one[name]


def test_three_processes_for_seven_clients_give_the_bits_of_one(
    folder: Path, one: dict[str, str]
) -> None:
    found = results(start(folder, SOME, 3))
    assert found == {name: one[name] for name in SOME}


def test_a_checkpoint_of_one_process_goes_on_in_two(
    one: dict[str, str], two: dict[str, str]
) -> None:
    assert two["sparsefed:last"] == one["sparsefed"] != one["sparsefed:2"]


def test_a_checkpoint_of_two_processes_goes_on_in_one(
    folder: Path, one: dict[str, str], two: dict[str, str]
) -> None:
    found = results(start(folder, ["leadfl released:last", "neurotoxin:last", "a3fl:last"]))
    assert found["leadfl released:last"] == one["leadfl released"] != two["leadfl released:2"]
    assert found["neurotoxin:last"] == one["neurotoxin"] != two["neurotoxin:2"]
    assert found["a3fl:last"] == one["a3fl"] != two["a3fl:2"]


def test_two_nodes_give_the_bits_of_one(folder: Path, one: dict[str, str]) -> None:
    port = free_port()
    nodes = [
        start(folder, ["leadfl", "fltrust"], 1, "--nnodes", "2", "--node-rank", str(rank),
              "--master-addr", "127.0.0.1", "--master-port", port)
        for rank in (0, 1)
    ]  # fmt: skip
    output(nodes[1])  # first: where it fails, torchrun lets the other one wait for five minutes
    assert results(nodes[0]) == {name: one[name] for name in ("leadfl", "fltrust")}


def test_two_slurm_tasks_on_two_nodes_give_the_bits_of_one(
    folder: Path, one: dict[str, str]
) -> None:
    """With the variables that srun sets, on loopback."""
    job = {
        "JOB_ID": "4242", "JOB_NAME": "leadfl", "NTASKS": "2", "NTASKS_PER_NODE": "1",
        "NNODES": "2", "LOCALID": "0", "NODELIST": "127.0.0.1",
    }  # fmt: skip
    port = free_port()
    tasks = []
    for rank in ("0", "1"):
        variables = {f"SLURM_{k}": v for k, v in (job | {"PROCID": rank, "NODEID": rank}).items()}
        variables["MASTER_PORT"] = port
        tasks.append(start(folder, ["leadfl", "fltrust"], variables=variables))
    output(tasks[1])
    assert results(tasks[0]) == {name: one[name] for name in ("leadfl", "fltrust")}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
@pytest.mark.parametrize("victim", ["main", "other"])
def test_a_lost_process_stops_the_run_with_one_sentence(victim: str, tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "cli.py"), "fit", f"--config={ROOT}/configs/quickstart.yaml",
        "--trainer.devices=2", "--trainer.max_epochs=100000", "--trainer.default_root_dir=run",
        "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        main = subprocess.Popen(
            command, cwd=tmp_path, stderr=file, stdout=file, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        STARTED.append(main)  # ends after its round, on both processes
        wait_until(lambda: "round 3 " in errors.read_text(), 120)
        (child,) = children(main.pid)
        os.kill(main.pid if victim == "main" else child, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: main.poll() is not None and not alive(child), 60)
    assert time.monotonic() - killed < 60
    said = errors.read_text()
    assert said.count("error: another process of this run has stopped") == 1
    assert "Traceback" not in said
    assert "sync_dist" not in said
    assert "deprecated" not in said
    resumed = subprocess.run(
        [*command, "--ckpt_path=last", "--trainer.devices=1", "--trainer.max_epochs=4"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_observer_of_processes_says_the_same_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FederatedStrategy()
    killed = []
    monkeypatch.setattr(os, "kill", lambda *call: killed.append(call))
    gone = SimpleNamespace(pid=7, returncode=-9, poll=lambda: -9, send_signal=lambda _: None)
    with caplog.at_level("INFO"):
        assert _ChildProcessObserver(1, [gone])._run()
    assert killed == [(1, signal.SIGKILL)]
    assert caplog.messages == [f"error: {LOST}"]


def test_an_error_of_ones_own_is_not_taken_for_a_lost_process() -> None:
    with pytest.raises(RuntimeError, match="shapes do not match"), lost_ranks(2):
        raise RuntimeError("shapes do not match")
    with pytest.raises(RankLostError, match="another process"), lost_ranks(2):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection reset by peer")
    with pytest.raises(RankLostError, match=r"another process.*Duplicate GPU"), lost_ranks(2):
        raise RuntimeError("NCCL error: Duplicate GPU detected")
    with pytest.raises(RuntimeError, match="reset by peer") as caught, lost_ranks(1):
        raise RuntimeError("Connection reset by peer")
    assert not isinstance(caught.value, RankLostError)


def test_a_process_that_is_lost_in_an_evaluation_is_said_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection reset by peer")

    monkeypatch.setattr(fl.FederatedClient, "validation_step", lost)
    monkeypatch.setattr(fl.FederatedTrainer, "world_size", 2)
    with pytest.raises(RankLostError, match="another process of this run has stopped"):
        small_trainer().validate(small_client(), SmallImages(), verbose=False)


def test_a_mac_trains_on_its_cpu_since_mps_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    found = "leadfl_pl.trainer.devices.accelerator_class"
    monkeypatch.setattr(found, lambda accelerator: MPSAccelerator)
    assert with_processes({"devices": 1}, 10)["accelerator"] == "cpu"
    with pytest.raises(fl.ConfigError, match=r"must be auto, cpu or cuda, .*got accelerator = gpu"):
        with_processes({"accelerator": "gpu"}, 10)
