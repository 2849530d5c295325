"""Experiments at work: the digits of the commands, nothing run twice, nothing lost."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from joblib.externals.loky import get_reusable_executor

from leadfl_pl.cli.experiment import main, report_ends
from leadfl_pl.cli.federated import run as fit
from leadfl_pl.experiments.gpus import take_gpu
from leadfl_pl.experiments.jobs import Job, read_record
from leadfl_pl.experiments.run import attempt, interrupt, is_locked, run_job, run_jobs
from leadfl_pl.experiments.signals import handlers
from leadfl_pl.experiments.spec import Cell
from leadfl_pl.records.files import write_whole
from leadfl_pl.records.rounds import read_run

COMMAND = [sys.executable, str(ROOT / "cli.py"), "experiment", "run", "small.yaml", "--jobs", "2"]


def experiment(rounds: int, *entries: dict, axis: str = "defense") -> None:
    content = {
        "base": str(ROOT / "configs/quickstart.yaml"),
        "set": {"trainer.max_epochs": rounds, "trainer.federation.local_epochs": 1},
        "axes": {axis: list(entries)},
        "seeds": [0, 1],
    }
    Path("small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def records() -> dict[str, dict]:
    folders = Path("runs/experiments/small").iterdir()
    seen = [read_record(folder) | {"folder": folder} for folder in folders]
    return {  # the queue's own folder has no record
        f"{r['labels']['defense']} {r['seed']}": r for r in seen if "labels" in r
    }


def rows(record: dict) -> list[dict[str, float]]:
    return read_run(record["folder"]).rows


NONE, LDP = {"label": "none", "model.defense": "NoDefense"}, {"model.defense": "LDP"}
DIVERGES = {"label": "too fast", "model.lr": 1e6, "trainer.federation.max_failures": 0}


def test_runs_have_the_digits_of_their_commands_and_failures_are_not_fatal(capfd) -> None:
    experiment(2, NONE, DIVERGES)
    assert main(["run", "small.yaml", "--jobs", "2"]) == 1
    out, err = capfd.readouterr()
    assert "2 of 4 runs are finished" in out
    assert err.count("failed: too fast, seed") == 2
    seen = records()
    assert {name: r["status"] for name, r in seen.items()} == {
        "none 0": "finished", "none 1": "finished",
        "too fast 0": "failed", "too fast 1": "failed",
    }  # fmt: skip
    assert seen["too fast 0"]["error"].startswith("no well-formed update in round ")
    assert seen["none 1"]["seconds_per_round"] > 0
    assert seen["none 1"]["peak_memory_mb"] > 100
    command = shlex.split(seen["none 1"]["command"])
    assert fit([*command[1:], "--trainer.default_root_dir=alone"]) == 0
    assert rows(seen["none 1"]) == read_run(Path("alone")).rows


def test_finished_runs_are_kept_and_those_of_another_commit_refused(capfd) -> None:
    experiment(1, NONE)
    assert main(["run", "small.yaml", "--jobs", "1"]) == 0
    before = {name: r["folder"].stat().st_mtime_ns for name, r in records().items()}
    experiment(1, NONE, LDP)
    assert main(["run", "small.yaml", "--jobs", "1", "--dry-run"]) == 0
    assert "2 to run, about" in capfd.readouterr().out
    assert main(["run", "small.yaml", "--jobs", "1"]) == 0
    after = {name: r["folder"].stat().st_mtime_ns for name, r in records().items()}
    assert before.items() <= after.items()
    experiment(1, NONE, LDP | {"model.lr": "1e-1"})  # as the base has it, in other words
    assert main(["report", "small.yaml", "-o", "out"]) == 0
    assert "missing" not in capfd.readouterr().err
    assert len(after) == 4
    record = records()["none 0"]
    file = record.pop("folder") / "cell.json"
    file.write_text(json.dumps(record | {"commit": "0ld"}))
    assert main(["run", "small.yaml"]) == 2
    assert "must have runs of commit" in (said := capfd.readouterr().err)
    assert "got runs of 0ld: remove them, or take both with --allow-mixed" in said
    assert main(["run", "small.yaml", "--allow-mixed"]) == 0


def test_time_is_estimated_by_the_committed_table_until_a_run_is_finished(capfd) -> None:
    experiment(3, NONE, LDP)
    table = Path("results/small/table.csv")
    table.parent.mkdir(parents=True)
    table.write_text("defense,seconds a round\nnone,20\nLDP,40\nlost,\n")
    assert main(["run", "small.yaml", "--jobs", "2", "--dry-run"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "4 to run, about 3 minutes, 2 at a time, judged by results/" in said
    table.write_text("defense\nnone\n")
    assert main(["run", "small.yaml", "--dry-run"]) == 0
    assert "is known when one is finished" in " ".join(capfd.readouterr().out.split())


def test_a_full_disk_is_one_sentence_and_the_command_goes_on_with_room(monkeypatch, capfd) -> None:
    experiment(1, NONE, LDP)

    def full(path: Path, data: bytes) -> None:
        if b'"finished"' in data and b"LDP" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("leadfl_pl.experiments.jobs.write_whole", full)
        assert main(["run", "small.yaml", "--jobs", "1"]) == 2
    (said,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert "No space left on device" in said
    before = records()["none 0"]["folder"].stat().st_mtime_ns
    assert main(["run", "small.yaml", "--jobs", "1"]) == 0
    assert {record["status"] for record in records().values()} == {"finished"}
    assert records()["none 0"]["folder"].stat().st_mtime_ns == before


def test_a_run_that_goes_on_with_other_code_says_so(capfd) -> None:
    experiment(1, NONE)
    assert main(["run", "small.yaml", "--jobs", "1"]) == 0
    record = records()["none 0"]
    file = record.pop("folder") / "cell.json"
    file.write_text(json.dumps(record | {"commit": "0ld", "status": "stopped"}))
    assert main(["run", "small.yaml", "--jobs", "1", "--allow-mixed"]) == 0
    both = f"0ld, {record['commit']}"
    assert [r["commit"] for r in records().values()] == [both, record["commit"]]
    assert main(["run", "small.yaml"]) == 2
    assert f"got runs of {both}: remove them" in capfd.readouterr().err


def test_runs_of_a_class_of_ones_own_are_refused_once_its_file_has_changed(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(".")
    file = Path("half_noise.py")
    file.write_text("from leadfl_pl import LDP\nclass HalfNoise(LDP):\n    pass\n")
    experiment(1, {"model.defense": "half_noise.HalfNoise"})
    assert main(["run", "small.yaml", "--jobs", "1"]) == 0
    assert main(["run", "small.yaml", "--jobs", "1"]) == 0
    file.write_text(file.read_text() + "# now with less noise\n")
    capfd.readouterr()
    assert main(["run", "small.yaml", "--jobs", "1"]) == 2
    said = capfd.readouterr().err
    assert "was run before the file of half_noise.HalfNoise was changed: remove it and" in said
    assert main(["run", "small.yaml", "--allow-mixed"]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_interrupted_goes_on_to_the_same_digits(number) -> None:
    experiment(15, NONE)
    process = subprocess.Popen(COMMAND, env=os.environ | {"OMP_NUM_THREADS": "1"})
    begun = time.monotonic()
    while not any(Path("runs").glob("experiments/small/*/checkpoints/*/last.ckpt")):
        assert time.monotonic() - begun < 120
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert {r["status"] for r in records().values()} <= {"stopped", "finished"}
    workers = [r["pid"] for r in records().values() if r["status"] == "running"]
    done = {name: r["folder"] for name, r in records().items() if r["status"] != "finished"}
    assert done
    assert main(["run", "small.yaml", "--jobs", "1"]) == 0
    seen = records()
    assert {r["status"] for r in seen.values()} == {"finished"}
    name = next(iter(done))
    command = shlex.split(seen[name]["command"])
    assert fit([*command[1:], "--trainer.default_root_dir=alone"]) == 0
    assert rows(seen[name]) == read_run(Path("alone")).rows
    assert [row["round"] for row in rows(seen[name])] == list(range(15))
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # they saw that they are orphans
        assert time.monotonic() - begun < 120
        time.sleep(0.5)


def job(folder: Path, name: str) -> Job:
    return Job(folder / name, Cell({}, {}, 0, []), [name], 1, {"hash": name, "experiment": "small"})


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_run_is_started_after_ctrl_c_in_the_last_round_of_another(at_once, tmp_path) -> None:
    """The run that gets the signal has nothing left to stop, and ends as any other."""

    def fit(arguments: list[str]) -> int:
        handler = signal.signal(signal.SIGINT, lambda number, frame: None)
        (tmp_path / f"{arguments[0]}.runs").touch()
        while len(list(tmp_path.glob("*.runs"))) < at_once:
            time.sleep(0.05)
        if arguments[0] == "0":
            os.kill(experiment_pid, signal.SIGINT)
        time.sleep(0.5)
        signal.signal(signal.SIGINT, handler)
        return 0

    experiment_pid = os.getpid()
    jobs = [job(tmp_path, name) for name in "01234"]
    ended = run_jobs(jobs, fit, at_once)
    assert [record["status"] for record in ended] == ["finished"] * at_once
    assert report_ends(ended, of=len(jobs)) == 130


def test_ctrl_c_reaches_a_run_in_its_own_process_and_nothing_after_it(tmp_path) -> None:
    def fit(arguments: list[str]) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        return 0

    (tmp_path / "0").mkdir()
    with handlers(signal.SIG_IGN):
        assert attempt(job(tmp_path, "0"), fit, {}, apart=True) == ("stopped", None)
        os.kill(os.getpid(), signal.SIGINT)  # while its record is written


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_before_the_runs_have_begun_stops_them(number, tmp_path) -> None:
    def fit(arguments: list[str]) -> int:
        time.sleep(60)
        return 0

    def nothing(number, frame) -> None:
        """The handler before the experiment's."""

    def interrupt() -> None:
        while signal.getsignal(number) is nothing:  # until the experiment listens
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    get_reusable_executor().shutdown(kill_workers=True)  # else there are workers that begin at once
    with handlers(nothing):
        threading.Thread(target=interrupt).start()
        ended = run_jobs([job(tmp_path, name) for name in "0123"], fit, 2)
    assert [record["status"] for record in ended] == ["stopped"] * len(ended)
    assert len(ended) <= 2


def test_a_run_whose_process_is_killed_fails_and_the_others_are_made(tmp_path, capfd) -> None:
    def fit(arguments: list[str]) -> int:
        if arguments[0] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1)
        return 0

    jobs = [job(tmp_path, name) for name in "01234"]
    ended = run_jobs(jobs, fit, 2)
    status = {record["hash"]: record["status"] for record in ended}
    assert status["0"] == "failed"
    assert [status[name] for name in "234"] == ["finished"] * 3
    assert jobs[0].read()["error"] == "its process, or that of a run beside it, was killed"
    assert report_ends([{**r, "labels": {}, "seed": 0} for r in ended], of=5) == 1


def test_ctrl_c_does_not_reach_the_run_of_another_experiment(tmp_path) -> None:
    theirs = job(tmp_path, "0")
    theirs.folder.mkdir()
    theirs.write(status="running", pid=os.getpid(), parent=os.getppid())
    assert not interrupt(theirs)


def test_what_another_process_has_finished_or_runs_is_left_alone(tmp_path) -> None:
    one = job(tmp_path, "0")
    one.folder.mkdir()
    done = one.write(status="finished", seconds_per_round=9.0)
    assert run_job(one, lambda arguments: 1 / 0) == done == one.read()
    assert not is_locked(one)
    with (one.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_locked(one)


def test_a_run_in_this_process_prints_to_its_file_also_beside_a_terminals_bars(tmp_path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests/experiments")!r})
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_run import job, run_jobs

def fit(arguments):
    print("error: what became of it", file=sys.stderr)
    return 2

[record] = run_jobs([job(Path({str(tmp_path)!r}), "0")], fit, 1)
assert record["error"] == "what became of it", record
"""
    end, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=terminal, stderr=terminal)
    os.close(terminal)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(end, 1 << 16):
            said += part
    assert process.wait() == 0, said.decode()


def test_what_no_run_can_be_is_one_sentence(capsys) -> None:
    experiment(1, NONE)
    assert main(["run", "small.yaml", "--jobs", "0"]) == 2
    assert capsys.readouterr().err == "error: --jobs must be >= 1, got 0\n"
    experiment(1, NONE, axis="status")
    assert main(["run", "small.yaml"]) == 2
    assert "axes must not be called like columns of tables, got status" in capsys.readouterr().err
    assert main(["run", "none.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot read none.yaml: ")
    assert main(["walk", "small.yaml"]) == 2


def test_each_process_has_a_gpu_of_its_own(monkeypatch, tmp_path) -> None:
    def fit(arguments: list[str]) -> int:
        (tmp_path / f"{arguments[0]}.gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        end = time.monotonic() + 300
        while len(list(tmp_path.glob("*.gpu"))) < 2 and time.monotonic() < end:  # until both run
            time.sleep(0.05)
        return 0

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8a,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # 7 is not there
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    get_reusable_executor().shutdown(kill_workers=True)  # workers have the environment of before
    try:
        run_jobs([job(tmp_path, name) for name in "01"], fit, 2)
    finally:
        get_reusable_executor().shutdown(kill_workers=True)
    assert {path.read_text() for path in tmp_path.glob("*.gpu")} == {"3", "GPU-8a"}


def test_more_processes_than_gpus_share_them_evenly(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("leadfl_pl.experiments.gpus._HELD", [])
    taken = []
    for gpus in [["0", "1"]] * 5 + [["1", "2"], ["7"], []]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as before")
        take_gpu(gpus)  # each call stands for a process: a lock is of the opened file
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["0", "1", "0", "1", "0", "2", "as before", "as before"]


def test_jobs_of_a_queue_leave_the_same_records(capfd) -> None:
    experiment(1, NONE, DIVERGES)
    assert main(["run", "small.yaml", "--slurm", "cluster=local", "timeout_min=5"]) == 1
    assert capfd.readouterr().err.count("failed: too fast, seed") == 2
    seen = records()
    assert {r["status"] for name, r in seen.items() if name.startswith("none")} == {"finished"}
    assert main(["run", "small.yaml", "--dry-run"]) == 0
    assert "2 to run" in capfd.readouterr().out


@pytest.mark.parametrize("words", [["partition"], ["cluster=local", "no_such=1"], ["cluster=moon"]])
def test_parameters_that_no_queue_takes_are_one_sentence(words, capsys) -> None:
    experiment(1, NONE)
    assert main(["run", "small.yaml", "--slurm", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --slurm must be ")
