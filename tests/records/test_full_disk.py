"""A full disk ends a run with one error, and what was on it before is intact."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from lightning.pytorch import Callback, LightningModule, Trainer
from resumed import assert_is_whole, fit, rounds_in

from leadfl_pl.cli.main import main
from leadfl_pl.records import files
from leadfl_pl.records.folders import last_checkpoint
from leadfl_pl.trainer.trainer import DiskFullError


def full_in_round(t: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves no room for the file ``name`` in round ``t`` of two or more."""
    calls, original = 0, files._put

    def put(part: Path, path: Path) -> None:
        nonlocal calls
        calls += path.name.startswith(name)
        if calls == t + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(part, path)

    monkeypatch.setattr(files, "_put", put)

    def link(*call: object) -> None:
        nonlocal calls
        calls += 1
        if calls > t:
            raise OSError(errno.ENOSPC, "No space left on device", "run/last.ckpt")
        symlink(*call)

    if name == "last.ckpt":
        symlink = os.symlink
        monkeypatch.setattr(os, "symlink", link)
        monkeypatch.setattr(shutil, "copy", link)  # Lightning's way out


@pytest.mark.parametrize("name", ["round-", "last.ckpt", "rounds.csv"])
def test_a_full_disk_is_one_error_and_the_run_goes_on_from_what_is_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full_in_round(2, name, patch)
        with pytest.raises(DiskFullError) as full:
            fit(5)
    file, _, rest = str(full.value).partition(": No space left on device. ")
    assert file.startswith("cannot write run/")
    assert name in file
    last = last_checkpoint(Path("run"))
    assert rest == f"The last checkpoint is whole: go on with ckpt_path = {last}"
    assert rounds_in(last) == (3 if name == "last.ckpt" else 2)
    assert not list(Path("run").rglob("*.part"))
    assert_is_whole(fit(5, ckpt_path="last"))


def test_the_command_line_ends_with_one_sentence_on_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    full_in_round(0, "round-", monkeypatch)
    flags = [
        "--trainer.max_epochs=2",
        "--trainer.default_root_dir=run",
        "--trainer.accelerator=cpu",
    ]
    assert main(["fit", f"--config={ROOT / 'configs/quickstart.yaml'}", *flags]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert line.endswith("No space left on device. There is no checkpoint to go on from")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


class Fill(Callback):
    """Leaves no room from the end of a round on."""

    def __init__(self, disk: Path, round: int) -> None:
        self.disk, self.round = disk, round

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.round:
            with suppress(OSError), (self.disk / "fill").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(512))


def test_a_disk_that_is_full_indeed(small_disk: Path) -> None:
    with pytest.raises(DiskFullError, match="The last checkpoint is whole"):
        fit(5, root=small_disk, callbacks=[Fill(small_disk, 2)])
    (small_disk / "fill").unlink()
    assert rounds_in(last_checkpoint(small_disk)) == 2
    assert_is_whole(fit(5, root=small_disk, ckpt_path="last"))
