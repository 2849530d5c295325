"""Runs under one root do not write over each other, and last is the newest of them."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from resumed import FOLDER, assert_is_whole, copy_of_three_rounds, fit, rounds_in
from tiny import SmallImages, small_client, small_trainer

import leadfl_pl as fl
from leadfl_pl.records.folders import RunLogger, claim, last_checkpoint


@pytest.fixture
def run_folder() -> Path:
    return copy_of_three_rounds()


def test_two_fresh_runs_share_nothing() -> None:
    first = fit(2)
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    fit(3)
    assert all(path.read_bytes() == data for path, data in before.items())
    assert rounds_in(Path("run/checkpoints/version_1/last.ckpt")) == 3
    assert Path("run/logs/version_1/rounds.csv").is_file()
    assert_is_whole(first, 2)
    assert_is_whole(fit(2, ckpt_path=FOLDER / "last.ckpt"), 2)


def test_a_fresh_run_has_one_number_for_logs_and_checkpoints() -> None:
    fit(1)
    fit(2, ckpt_path="last")  # takes logs/version_1
    fit(1)
    assert {p.name for p in Path("run/checkpoints").iterdir()} == {"version_0", "version_2"}
    assert {p.name for p in Path("run/logs").iterdir()} == {"version_0", "version_1", "version_2"}


def test_without_a_logger_runs_have_folders_of_their_own_as_well() -> None:
    fit(1, logger=False)
    fit(2, logger=False)
    assert [rounds_in(p) for p in sorted(Path("run").rglob("last.ckpt"))] == [1, 2]


@pytest.mark.parametrize("kind", ["checkpoints", "logs"])
def test_runs_that_start_at_the_same_moment_get_different_folders(kind: str) -> None:
    barrier, found = threading.Barrier(16), []

    def start() -> None:
        barrier.wait()
        is_log = kind == "logs"
        found.append(RunLogger("run").version if is_log else claim(Path("run", kind), 0).name)

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 16
    assert len(list(Path("run", kind).iterdir())) == 16


def test_a_resumed_run_goes_on_in_its_folder() -> None:
    fit(2)
    fit(1)
    left_over = FOLDER / "round-2.ckpt.0badcafe.part"
    left_over.write_bytes(b"of a process that was killed")
    fit(4, ckpt_path=FOLDER / "last.ckpt")
    assert_is_whole(fit(5, ckpt_path="last"))
    assert rounds_in(FOLDER / "last.ckpt") == 5
    assert not left_over.exists()
    assert rounds_in(Path("run/checkpoints/version_1/last.ckpt")) == 1
    assert len(list(Path("run/checkpoints").iterdir())) == 2


def test_a_file_from_elsewhere_is_gone_on_with_in_a_fresh_folder(run_folder: Path) -> None:
    shutil.copy(run_folder / "last.ckpt", "copy.ckpt")
    assert_is_whole(fit(5, ckpt_path="copy.ckpt"))
    assert rounds_in(Path("run/checkpoints/version_1/last.ckpt")) == 5
    assert rounds_in(run_folder / "last.ckpt") == 3


def test_last_is_not_an_older_run_when_the_newest_has_no_checkpoint(
    run_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    class PulledPlug(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(2, callbacks=[PulledPlug()])
    capsys.readouterr()
    resumed = fit(2, ckpt_path="last")
    assert "last finds no checkpoint of the newest run under" in capsys.readouterr().err
    assert_is_whole(resumed, 2)
    assert rounds_in(run_folder / "last.ckpt") == 3


def test_without_its_link_last_is_the_highest_round_that_is_not_cut_off(run_folder: Path) -> None:
    whole = (run_folder / "last.ckpt").read_bytes()
    assert last_checkpoint(Path("run")) == run_folder / "last.ckpt"
    (run_folder / "last.ckpt").unlink()
    (run_folder / "last.ckpt").symlink_to("round-99.ckpt")  # which is not there
    for number in (9, 10):
        (run_folder / f"round-{number}.ckpt").write_bytes(whole)
    (run_folder / "round-11.ckpt").write_bytes(whole[: len(whole) // 2])
    (run_folder / "round-best.ckpt").write_bytes(whole)
    assert last_checkpoint(Path("run")) == run_folder / "round-10.ckpt"


def test_last_with_no_run_at_all_starts_with_round_0_and_says_so(
    capsys: pytest.CaptureFixture,
) -> None:
    first = fit(2, ckpt_path="last")
    said = [line for line in capsys.readouterr().err.splitlines() if "ckpt_path" in line]
    assert len(said) == 1
    assert said[0].endswith(": a fresh run starts with round 0")
    assert_is_whole(first, 2)


def test_there_is_nothing_to_validate_without_a_checkpoint() -> None:
    trainer = small_trainer(default_root_dir="run")
    with pytest.raises(fl.ConfigError, match="last finds no checkpoint of the newest run under"):
        trainer.validate(small_client(), datamodule=SmallImages(), ckpt_path="last")
