"""Arguments of the Trainer that a federation cannot use are one sentence, before anything runs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from tiny import SmallImages, small_client, small_trainer

import leadfl_pl as fl
from leadfl_pl.trainer import devices
from leadfl_pl.trainer.devices import with_processes

NAN = float("nan")
LAUNCHERS = ("LOCAL_", "WORLD_", "MASTER_", "NODE_", "GROUP_", "RANK", "SLURM_")


@pytest.fixture(autouse=True)
def _alone_on_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Lightning leaves in the environment after a fit of several processes is gone as well."""
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        *[("devices", value, "a number of processes >= 1 or auto")
          for value in (-1, 0, "abc", 1.5, "1.5", True, [0, 0], [], "0,1")],
        ("devices", 8, "<= 7, the clients of a round"),
        ("devices", 99, "<= 7, the clients of a round"),
        ("num_nodes", 0, "a whole number >= 1"),
        ("num_nodes", -1, "a whole number >= 1"),
        ("num_nodes", 2, "1 unless torchrun, srun or MASTER_ADDR"),
        ("accelerator", "foo", "auto or one that this machine has, cpu"),
        ("strategy", "foo", "auto or federated"),
        ("strategy", "fsdp", "auto or federated"),
        ("max_epochs", 0, "a whole number >= 1"),
        ("max_epochs", -1, "a whole number >= 1"),
        ("max_epochs", NAN, "a whole number >= 1"),
        ("max_epochs", True, "a whole number >= 1"),
        ("min_epochs", -1, "a whole number >= 0"),
        ("check_val_every_n_epoch", 0, "a whole number >= 1"),
        ("check_val_every_n_epoch", -2, "a whole number >= 1"),
        ("num_sanity_val_steps", -2, "a whole number >= -1"),
        ("precision", "16-true", "32, 64 or bf16"),
        ("precision", 16, "32, 64 or bf16"),
        ("precision", "transformer-engine", "32, 64 or bf16"),
        ("threads", 0, "a whole number from 1 to 2"),
        ("threads", 3, "a whole number from 1 to 2"),
        ("threads", NAN, "a whole number from 1 to 2"),
        ("max_time", "soon", "DD:HH:MM:SS and > 0"),
        ("max_time", "00:00:00:00", "DD:HH:MM:SS and > 0"),
        ("max_time", {"fortnights": 1}, "DD:HH:MM:SS and > 0"),
    ],
)  # fmt: skip
def test_a_value_outside_sense_is_refused_by_its_key(key: str, value: Any, right: str) -> None:
    with pytest.raises(fl.ConfigError) as refused:
        small_trainer(**{key: value})
    message = str(refused.value)
    assert message.startswith(f"trainer.{key}")
    assert f" must be {right}" in message
    assert f"got {key} = {value}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("limit_train_batches", 3, "trainer.federation.local_epochs or local_steps"),
        ("limit_train_batches", 0, "trainer.federation.local_epochs or local_steps"),
        ("overfit_batches", 0.5, "trainer.federation.local_epochs or local_steps"),
        ("val_check_interval", 0.25, "trainer.check_val_every_n_epoch"),
        ("val_check_interval", "00:00:10:00", "trainer.check_val_every_n_epoch"),
        ("max_steps", 3, "trainer.max_epochs"),
        ("min_steps", 3, "trainer.min_epochs"),
        ("accumulate_grad_batches", 2, "data.batch_size"),
        ("gradient_clip_val", 1.0, "NormClipping"),
        ("gradient_clip_algorithm", "norm", "NormClipping"),
        ("reload_dataloaders_every_n_epochs", 1, "keep their data"),
        ("sync_batchnorm", True, "mix the batch statistics"),
        ("barebones", True, "keeps its record"),
    ],
)
def test_an_argument_that_would_be_ignored_is_refused(key: str, value: Any, instead: str) -> None:
    with pytest.raises(fl.ConfigError) as refused:
        small_trainer(**{key: value})
    message = str(refused.value)
    assert message.startswith(f"trainer.{key} is not used in a federation: ")
    assert instead in message
    assert message.endswith(f"leave it out, got {key} = {value}")


def test_what_a_config_spells_out_without_changing_it_is_taken() -> None:
    trainer = small_trainer(
        limit_train_batches=None, overfit_batches=0.0, val_check_interval=None, max_steps=-1,
        accumulate_grad_batches=1, gradient_clip_val=None, sync_batchnorm=False, barebones=False,
        max_time=None, num_nodes=1, strategy="auto", precision=None, max_epochs=None,
        inference_mode=False, deterministic=True, benchmark=False,
    )  # fmt: skip
    torch.use_deterministic_algorithms(False)
    assert isinstance(trainer.strategy, SingleDeviceStrategy)


@pytest.mark.parametrize("root", ["file", "file/below", "/proc", "/proc/run", "a" * 300, "a\0b"])
def test_a_root_in_which_no_file_can_be_made_is_refused(root: str) -> None:
    Path("file").write_text("in the way")
    with pytest.raises(fl.ConfigError, match=r"^trainer.default_root_dir must be a folder in whi"):
        small_trainer(default_root_dir=root, logger=True)
    assert Path("file").read_text() == "in the way"


def test_a_run_that_writes_nothing_needs_no_root() -> None:
    small_trainer(default_root_dir="/proc")


def test_a_root_is_made_and_nothing_is_left_in_it_before_the_run() -> None:
    small_trainer(default_root_dir="some/where", logger=True)
    assert list(Path("some/where").iterdir()) == []


class SlowRounds(Callback):
    """Notes the rounds that end, and lets time pass in the second one."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            (timer,) = [c for c in trainer.callbacks if isinstance(c, Timer)]
            timer._offset = 3600

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.rounds.append(trainer.current_epoch)


def test_max_time_ends_the_run_after_the_round_in_which_it_is_over() -> None:
    slow = SlowRounds()
    trainer = small_trainer(rounds=5, max_time=timedelta(minutes=30), callbacks=[slow])
    trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
    assert slow.rounds == [0, 1]
    (timer,) = [c for c in trainer.callbacks if isinstance(c, Timer)]
    assert timer._interval == "epoch"  # ranks may have unequally many clients


# ------------------------------------------------------------------ processes


def processes(clients: int = 7, **arguments: Any) -> tuple[Any, int, bool]:
    """Devices, nodes, and whether the strategy is the one of several processes."""
    decided = with_processes({"accelerator": "cpu"} | arguments, clients)
    federated = isinstance(decided["strategy"], fl.FederatedStrategy)
    return decided["devices"], decided["num_nodes"], federated


@pytest.mark.parametrize(
    ("cores", "devices_", "count"),
    [(1, "auto", 1), (2, "auto", 2), (4, "auto", 4), (6, "auto", 4), (64, "auto", 7),
     (64, None, 1), (2, 1, 1), (2, "2", "2")],
)  # fmt: skip
def test_auto_is_as_many_processes_as_serve_the_round(
    cores: int, devices_: Any, count: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "usable_cores", lambda: cores)
    assert processes(devices=devices_) == (count, 1, int(count) > 1)


def test_a_process_that_lightning_started_comes_to_the_same_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert processes(devices="auto") == (2, 1, True)


def test_in_a_notebook_auto_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", "In [1]: ", raising=False)
    assert processes(devices="auto") == (1, 1, False)


def test_more_processes_than_cores_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"trainer.devices = 3 processes share 2 cores"):
        assert processes(devices=3) == (3, 1, True)


TORCHRUN = {"LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "6", "LOCAL_RANK": "0", "RANK": "0"}
SRUN = {"SLURM_NTASKS": "6", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "3",
        "SLURM_JOB_NAME": "job"}  # fmt: skip


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
@pytest.mark.filterwarnings("ignore:.*processes share 2 cores")
def test_a_launcher_is_followed_and_not_contradicted(
    launcher: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert processes() == processes(devices="auto") == processes(devices=3) == (3, 2, True)
    for wrong in ({"devices": 1}, {"devices": 3, "num_nodes": 3}):
        with pytest.raises(fl.ConfigError, match=r"must be 3 and trainer.num_nodes 2, as many"):
            processes(**wrong)


def test_two_nodes_are_taken_where_something_connects_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert processes(num_nodes=2, plugins=LightningEnvironment()) == (1, 2, True)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    with pytest.raises(fl.ConfigError, match=r"^trainer.num_nodes must be 1 unless"):
        processes(num_nodes=2)
    monkeypatch.setenv("NODE_RANK", "1")
    assert processes(num_nodes=2, devices="auto") == (1, 2, True)  # cores may differ
    with pytest.raises(fl.ConfigError, match=r"got devices = 4 and num_nodes = 2"):
        processes(num_nodes=2, devices=4)


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "lightning.fabric.accelerators.cuda"
    monkeypatch.setattr(f"{module}._get_all_visible_cuda_devices", lambda: list(range(8)))
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", staticmethod(lambda: 8))
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))


@pytest.mark.usefixtures("eight_gpus")
@pytest.mark.parametrize(
    ("given", "several"),
    [(None, True), ("auto", True), (2, True), ("2", True), ([0, 3], True), ("0,3", True),
     (1, False), ([5], False), ("5,", False)],
)  # fmt: skip
def test_gpus_are_a_number_or_a_list(given: Any, several: bool) -> None:
    taken, _, federated = processes(accelerator="auto", devices=given)
    assert taken == (7 if given in (None, "auto") else given)
    assert federated == several


@pytest.mark.usefixtures("eight_gpus")
@pytest.mark.parametrize("given", [0, 9, [0, 0], [0, 8], "abc", True])
def test_gpus_that_are_not_there_are_refused(given: Any) -> None:
    with pytest.raises(fl.ConfigError, match=r"list of this machine's 8 cuda devices, -1 or auto"):
        processes(accelerator="gpu", devices=given)


# ------------------------------------------------------------------ threads


class Threads(Callback):
    def on_train_start(self, *_: Any) -> None:
        self.seen = torch.get_num_threads()


@pytest.mark.parametrize(("threads", "seen"), [(None, 1), (1, 1), (2, 2)])
def test_a_run_on_a_cpu_has_one_thread_or_what_was_asked_for(
    threads: int | None, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = 2 if seen == 1 else 1
    torch.set_num_threads(callers)
    try:
        trainer = small_trainer(threads=threads, rounds=1, callbacks=[noted := Threads()])
        trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
        assert (noted.seen, torch.get_num_threads()) == (seen, callers)
    finally:
        torch.set_num_threads(1)


def test_threads_are_put_back_after_an_error() -> None:
    class Failing(Callback):
        def on_train_start(self, *_: Any) -> None:
            raise RuntimeError("pulled the plug")

    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="pulled the plug"):
            small_trainer(callbacks=[Failing()]).fit(small_client(), datamodule=SmallImages())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_nothing_is_written_to_the_environment() -> None:
    before = dict(os.environ)
    small_trainer(devices="auto", threads=2)
    assert dict(os.environ) == before


# ------------------------------------------------------------------ the console


def test_packages_of_lightnings_maker_are_not_advertised(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        small_trainer()
    assert any("GPU available" in message for message in caplog.messages)
    assert not any("litlogger" in message for message in caplog.messages)


def test_torchrun_with_a_config_of_one_device_is_refused_and_with_auto_is_one_run() -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(ROOT / "cli.py"), "fit", f"--config={ROOT}/configs/quickstart.yaml",
        "--trainer.max_epochs=1", "--trainer.default_root_dir=run",
    ]  # fmt: skip
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode != 0
    assert refused.stderr.count("error: trainer.devices must be 2 and") == 2  # on both
    assert not Path("run").exists()
    followed = subprocess.run(
        [*command, "--trainer.devices=auto"], capture_output=True, text=True, timeout=120
    )
    assert followed.returncode == 0, followed.stderr
    assert [folder.name for folder in Path("run/logs").iterdir()] == ["version_0"]
    assert followed.stderr.count("(1 of 1 done)") == 1


def test_a_plugin_with_a_scaler_is_refused() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(fl.ConfigError, match="must have no scaler, got one of MixedPrecision"):
        small_trainer(plugins=[plugin])
