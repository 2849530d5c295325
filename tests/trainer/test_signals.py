"""SIGTERM and Ctrl-C end a run after its round; what they leave is complete, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from lightning.pytorch import Callback, LightningModule, Trainer
from resumed import FOLDER, assert_is_whole, fit, rounds_in, whole
from tiny import SmallImages, small_client, small_trainer

import leadfl_pl as fl
from leadfl_pl.cli.main import main
from leadfl_pl.records.rounds import read_run


class Send(Callback):
    """Sends a signal to its own process in the middle of a round."""

    def __init__(self, number: int, round: int = 1, times: int = 1, rank: int = 0) -> None:
        self.number, self.round, self.times, self.rank = number, round, times, rank

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.current_epoch == self.round and trainer.global_rank == self.rank:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
            self.times = 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_round_with_all_its_records(
    number: signal.Signals, capfd: pytest.CaptureFixture
) -> None:
    before = signal.getsignal(number)
    _, rows = fit(5, callbacks=[Send(number)])
    assert [row["round"] for row in rows] == [0, 1]
    assert rows == whole(5)[1][1][:2]
    assert rounds_in(FOLDER / "last.ckpt") == 2
    run = read_run(Path("run"))
    assert [row["round"] for row in run.rows] == [0, 1]
    assert run.provenance["stopped_by"] == number.name
    assert (run.folder / "accuracy.png").stat().st_size > 5000
    assert len((run.folder / "metrics.csv").read_text().splitlines()) >= 3
    assert signal.getsignal(number) is before
    first, last = (line for line in capfd.readouterr().err.splitlines() if number.name in line)
    assert first.startswith(f"{number.name}: the run stops after this round")
    assert last == (
        f"{number.name}: stopped after 2 of 5 rounds. The last checkpoint is whole: go on with "
        f"ckpt_path = {FOLDER / 'last.ckpt'}"
    )
    assert_is_whole(fit(5, ckpt_path="last"))
    assert "stopped_by" not in read_run(Path("run")).provenance


def test_a_second_ctrl_c_ends_it_at_once_without_damage() -> None:
    with pytest.raises(SystemExit) as ended:
        fit(5, callbacks=[Send(signal.SIGINT, times=2)])
    assert isinstance(ended.value.__context__, KeyboardInterrupt)
    assert rounds_in(FOLDER / "last.ckpt") == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_is_whole(fit(5, ckpt_path="last"))


def test_a_second_sigterm_changes_nothing() -> None:
    fit(5, callbacks=[Send(signal.SIGTERM, times=3)])
    assert rounds_in(FOLDER / "last.ckpt") == 2


def test_a_signal_in_the_last_round_stops_nothing() -> None:
    trainer = small_trainer(rounds=2, callbacks=[Send(signal.SIGTERM, round=1)])
    trainer.fit(small_client(), datamodule=SmallImages())
    assert trainer.stopped_by is None


def test_min_epochs_do_not_keep_a_run_from_stopping() -> None:
    fit(5, callbacks=[Send(signal.SIGTERM)], min_epochs=4)
    assert rounds_in(FOLDER / "last.ckpt") == 2


def test_without_checkpoints_it_says_so(capfd: pytest.CaptureFixture) -> None:
    trainer = small_trainer(rounds=3, callbacks=[Send(signal.SIGTERM, round=0)])
    trainer.fit(small_client(), datamodule=SmallImages())
    trainer.validate(small_client(), datamodule=SmallImages(), verbose=False)
    assert trainer.stopped_by == signal.SIGTERM  # as it was: nothing else has been fitted
    assert "stopped after 1 of 3 rounds. There is no checkpoint to go on" in capfd.readouterr().err


def test_a_handler_that_was_there_is_called_as_well_and_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def own(number: int, frame: object) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGTERM, own)
    try:
        fit(3, callbacks=[Send(signal.SIGTERM)])
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [signal.SIGTERM]
    assert rounds_in(FOLDER / "last.ckpt") == 2


def test_whoever_has_replaced_the_handler_of_ctrl_c_keeps_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        fit(3, callbacks=[Send(signal.SIGINT)])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert rounds_in(FOLDER / "last.ckpt") == 3


@pytest.mark.parametrize(
    ("number", "times", "status"), [(signal.SIGTERM, 1, 143), (signal.SIGINT, 2, 130)]
)
def test_the_command_line_tells_by_its_status_that_the_run_was_stopped(
    number: int, times: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, original = Send(number, round=0, times=times), fl.RunReport.on_train_epoch_end

    def sending(self: fl.RunReport, trainer: Trainer, pl_module: LightningModule) -> None:
        original(self, trainer, pl_module)
        send.on_train_batch_end(trainer, pl_module)

    monkeypatch.setattr(fl.RunReport, "on_train_epoch_end", sending)
    flags = [
        "--trainer.max_epochs=3",
        "--trainer.default_root_dir=run",
        "--trainer.accelerator=cpu",
    ]
    config = f"--config={ROOT / 'configs/quickstart.yaml'}"
    assert main(["fit", config, "--trainer.federation.local_epochs=1", *flags]) == status


def test_processes_agree_on_a_signal_that_only_one_of_them_got() -> None:
    job = [sys.executable, str(ROOT / "tests" / "trainer" / "signals_job.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(job, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "SIGTERM: stopped after 2 of 5 rounds." in done.stderr
    assert rounds_in(FOLDER / "last.ckpt") == 2
    assert_is_whole(fit(5, ckpt_path="last"))  # on one process


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Path:
    """As in a SLURM job of one task; what ``scontrol`` was asked for goes to the file."""
    job = {"NTASKS": 1, "JOB_NAME": "job", "JOB_ID": 7, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    Path("bin").mkdir()
    Path("bin/scontrol").write_text('#!/bin/sh\necho "$@" >> requeued\n')
    Path("bin/scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:{os.environ['PATH']}")
    return Path("requeued")


def test_a_slurm_job_is_queued_again_after_its_round_and_goes_on_by_itself(cluster: Path) -> None:
    fit(5, callbacks=[Send(signal.SIGUSR1)])
    assert cluster.read_text() == "requeue 7\n"
    assert json.loads((read_run(Path("run")).folder / "run.json").read_text())["stopped_by"]
    assert rounds_in(Path("run/hpc_ckpt_1.ckpt")) == 2
    assert_is_whole(fit(5))  # Lightning finds it
