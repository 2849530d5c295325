"""A checkpoint is whole or not there, and one that cannot be used is refused in one sentence."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from resumed import assert_is_whole, copy_of_three_rounds, fit, rounds_in
from tiny import SmallImages, small_client, small_trainer

import leadfl_pl as fl
from leadfl_pl.cli.main import main
from leadfl_pl.records import files
from leadfl_pl.records.checkpoints import WholeCheckpointIO, read_checkpoint
from leadfl_pl.records.folders import last_checkpoint


@pytest.fixture
def run_folder() -> Path:
    return copy_of_three_rounds()


class Code:
    """Loading it makes a file."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def damaged(kind: str, good: Path) -> None:
    """Writes over a good checkpoint."""
    data = bytearray(good.read_bytes())
    good.unlink()  # the file has a second name
    if kind == "cut off":
        good.write_bytes(data[: len(data) * 2 // 3])
    elif kind == "one bit":
        with zipfile.ZipFile(good.with_name("round-1.ckpt")) as archive:
            largest = max(archive.infolist(), key=lambda member: member.file_size)
        data[largest.header_offset + 150 + largest.file_size // 2] ^= 1
        good.write_bytes(data)
    elif kind == "random":
        good.write_bytes(torch.arange(3000).numpy().tobytes())
    elif kind == "empty":
        good.touch()
    elif kind == "another zip":
        with zipfile.ZipFile(good, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "code":
        torch.save({"state_dict": {}, "loops": {}, "x": Code()}, good)
    elif kind == "bare pickle":
        good.write_bytes(pickle.dumps(Code()))
    else:
        torch.save({"weights": torch.zeros(3)}, good)


REASONS = {
    "cut off": "it is cut off, or was never a checkpoint",
    "one bit": "it is damaged: the check sum of",
    "random": "it is cut off, or was never a checkpoint",
    "empty": "it is cut off, or was never a checkpoint",
    "another zip": "it is damaged, or was never a checkpoint",
    "code": "it would call posix.system when it is loaded",
    "bare pickle": "it is cut off, or was never a checkpoint",
    "other content": "it is not a checkpoint that a Trainer wrote",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_last_checkpoint_is_refused_and_the_newest_good_one_offered(
    kind: str, run_folder: Path
) -> None:
    (run_folder / "round-2.ckpt").unlink()
    damaged(kind, run_folder / "last.ckpt")
    with pytest.raises(fl.ConfigError) as refused:
        fit(5, ckpt_path="last")
    offered = run_folder / "round-1.ckpt"
    assert str(refused.value).startswith(f"ckpt_path = {run_folder / 'last.ckpt'} cannot be used: ")
    assert REASONS[kind] in str(refused.value)
    assert str(refused.value).endswith(f"; the newest good one beside it is {offered}")
    assert not Path("pwned").exists()
    if kind == "cut off":
        assert_is_whole(fit(5, ckpt_path=offered))
        assert rounds_in(run_folder / "last.ckpt") == 5  # it went on there


def test_without_a_good_one_none_is_offered(run_folder: Path) -> None:
    for path in run_folder.glob("*.ckpt"):
        damaged("cut off", path)
    with pytest.raises(fl.ConfigError, match=r"was never a checkpoint$"):
        fit(5, ckpt_path="last")


def test_code_runs_only_where_that_was_asked_for(run_folder: Path) -> None:
    torch.save({"state_dict": {}, "loops": {}, "pytorch-lightning_version": "2", "x": Code()}, "a")
    read_checkpoint(Path("a"), weights_only=False)
    assert Path("pwned").exists()


def test_a_checkpoint_of_another_network_is_refused(run_folder: Path) -> None:
    wide = fl.FederatedClient(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    with pytest.raises(
        fl.ConfigError,
        match=r"last.ckpt cannot be used: it holds another network: model.1.weight is of shape "
        r"\(4,\) there and of shape \(10, 64\) here$",
    ):
        fit(5, ckpt_path="last", client=wide)


class Plain(LightningModule):
    """Nothing federated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.save_hyperparameters({"width": 3})

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def ordinary() -> Path:
    """A checkpoint of an ordinary Trainer."""
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Plain(), torch.utils.data.DataLoader(torch.zeros(4, 2)))
    trainer.save_checkpoint("plain.ckpt")
    return Path("plain.ckpt")


def test_an_ordinary_lightning_checkpoint_is_refused(ordinary: Path) -> None:
    with pytest.raises(
        fl.ConfigError, match=r"plain.ckpt cannot be used: it was not written by a "
    ):
        fit(ckpt_path=ordinary)
    trainer = small_trainer()
    with pytest.raises(fl.ConfigError, match=r"plain.ckpt cannot be used: it holds another netw"):
        trainer.validate(small_client(), datamodule=SmallImages(), ckpt_path=ordinary)


@pytest.mark.parametrize("kind", ["random", "code", "ordinary"])
def test_the_command_line_refuses_in_one_sentence(
    kind: str, run_folder: Path, ordinary: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = run_folder / "last.ckpt"
    if kind == "ordinary":
        bad.unlink()
        shutil.copy(ordinary, bad)
    else:
        damaged(kind, bad)
    assert main(["fit", f"--config={ROOT / 'configs/quickstart.yaml'}", f"--ckpt_path={bad}"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert f"{bad} cannot be used: " in line
    assert "round-2.ckpt" in line


# ---------------------------------------------------------------------- written whole


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_is_whole_or_as_it_was(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_whole(Path("a"), b"old")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "no luck")

    monkeypatch.setattr(files.os, call, fails)
    with pytest.raises(OSError, match="no luck: 'a'"):
        files.write_whole(Path("a"), b"new")
    assert Path("a").read_bytes() == b"old"
    assert [p.name for p in Path().iterdir()] == ["a"]


def test_a_file_is_on_the_disk_before_it_gets_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            files.os, name, lambda *a, n=name, o=original: (calls.append(n), o(*a))[1]
        )
    files.write_whole(Path("a"), b"new")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_the_last_two_rounds_are_kept(run_folder: Path) -> None:
    assert {p.name for p in run_folder.iterdir()} == {"round-1.ckpt", "round-2.ckpt", "last.ckpt"}
    assert [rounds_in(run_folder / f"round-{t}.ckpt") for t in (1, 2)] == [2, 3]
    assert rounds_in(run_folder / "last.ckpt") == 3


def test_a_run_in_the_working_directory_keeps_two_rounds_when_it_goes_on() -> None:
    for rounds in (2, 4):
        trainer = fl.FederatedTrainer(
            small_trainer().federation, max_epochs=rounds, accelerator="cpu", devices=1
        )
        trainer.fit(small_client(), datamodule=SmallImages(batch_size=8), ckpt_path="last")
    kept = {path.name for path in Path("checkpoints/version_0").iterdir()}
    assert kept == {"round-2.ckpt", "round-3.ckpt", "last.ckpt"}


def test_last_is_the_last_round_beside_a_monitoring_checkpoint() -> None:
    best = ModelCheckpoint(
        dirpath="best", monitor="val/clean_accuracy", mode="min", save_last=True, save_top_k=1
    )
    fit(4, callbacks=[best])
    assert rounds_in(last_checkpoint(Path("run"))) == 4


def test_a_plugin_of_the_user_is_kept() -> None:
    own = TorchCheckpointIO()
    assert small_trainer(plugins=own).strategy.checkpoint_io is own
    assert isinstance(small_trainer().strategy.checkpoint_io, WholeCheckpointIO)
