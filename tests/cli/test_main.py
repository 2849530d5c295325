"""Overrides, errors, loggers and the progress bar, as a user meets them."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import ROOT
from lightning.pytorch import Callback
from resumed import fit

import leadfl_pl as fl
from leadfl_pl.cli.federated import SaveConfig, run
from leadfl_pl.cli.main import main

QUICKSTART = ["fit", f"--config={ROOT / 'configs/quickstart.yaml'}"]
TINY = [
    "--trainer.max_epochs=2",
    "--trainer.federation.local_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
    "--trainer.default_root_dir=run",
]


def rows(folder: str = "run/logs/version_0") -> list[dict[str, str]]:
    with (Path(folder) / "rounds.csv").open() as file:
        return list(csv.DictReader(file))


def failure(capsys: pytest.CaptureFixture, *flags: str) -> str:
    """The one line that a wrong configuration prints."""
    with pytest.raises(SystemExit) as exit:
        raise SystemExit(main([*QUICKSTART, *TINY, *flags]))
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert not Path("run/checkpoints").exists()  # nothing was trained
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.defense=Nope"], "model.defense = Nope: neither such a class nor a file of that "
                                   "name; known are "),
        (["--model.defense.alpha=abc"], "model.defense.alpha must be float, got abc"),
        (["--model.defense.alfa=1"], "model.defense.alfa is no setting of LeadFL, which has alpha"),
        (["--model.defense.alpha=-0.4"], "LeadFL: alpha must be >= 0, got alpha = -0.4"),
        (["--model.defense.clip=0"], "LeadFL: clip must be > 0, got clip = 0.0"),
        (["--trainer.federation.aggregator=Kum"], "FLTrust, FedAvg, FoolsGold, Krum, Median, "),
        (["--trainer.federation.aggregator.f=4"], "MultiKrum needs n >= 2f + 3 = 11 updates for "
                                                  "f = 4, got n = 10"),
        (["--trainer.federation.num_malicious=101"], "trainer.federation.num_malicious must be <= "
                                                     "num_clients = 100, got num_malicious = 101"),
        (["--trainer.federation.schedule.num_malicious=11"], "BurstySchedule: num_malicious must be"
                                                             " <= clients_per_round = 10"),
        (["--trainer.federation.num_clients=1500"], "1500 leaves client 1437 without"),
        (["--trainer.federation.attack.pattern=[[1,1,1,1,1,1,1,1,1]]"], "pattern must fit the image"
                                                                        ", 8 x 8 pixels"),
        (["--trainer.federation.distance_space=foo"], "must be one of 'params', 'state', got foo"),
        (["--trainer.max_epochs=x"], "trainer.max_epochs must be int or null, got x"),
        (["--trainer.federation.atack=null"],
         "--trainer.federation.atack=null is no setting; did you mean trainer.federation.attack?"),
        (["--config=missing.yaml"], "missing.yaml: file does not exist"),
        (["--ckpt_path=best"], "ckpt_path must be a checkpoint or last, got ckpt_path = best"),
        (["--trainer.strategy=foo"], "trainer.strategy must be auto or federated"),
        (["--model.model.num_classes=-1"], "negative dimension -1"),
        (["--ckpt_path=nothere.ckpt"], "ckpt_path must be a checkpoint or last, got ckpt_path = n"),
        (["--model.model=FashionMNISTNet"], "model.model = FashionMNISTNet must take images of "
                                            "shape (1, 8, 8), the shape of Digits"),
        (["--model.model.num_classes=7"], "model.model = DigitsNet must give 10 logits an image"),
        (["--trainer.sync_batchnorm=true"], "trainer.sync_batchnorm is not used in a federation"),
        (["--trainer.precision=16-mixed"], "trainer.precision must be 32, 64 or bf16"),
        (["--trainer.federation.server_lr=0"], "server_lr must be > 0, got server_lr = 0"),
        (["--trainer.federation.attack.position=[-1,0]"], "position must be >= 0"),
        (["--trainer.federation.num_clients=0"], "num_clients must be >= 1, got num_clients = 0"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    assert message in failure(capsys, *flags)


def test_data_that_is_not_there_is_one_sentence(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leadfl_pl.data.fashion_mnist.DEBIAN_FOLDER", Path("nowhere"))

    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", no_network)
    line = failure(capsys, "--data=FashionMNIST")
    assert "data.data_dir = data has no FashionMNIST" in line


def test_a_traceback_is_there_for_the_asking(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEADFL_PL_TRACEBACK", "1")
    assert main([*QUICKSTART, "--model.defense.alpha=-1"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("defense", ["null", "NoDefense", "LDP", "FLWBC", "LeadFL"])
def test_the_defense_is_one_key(defense: str) -> None:
    assert main([*QUICKSTART, *TINY, "--model.defense", defense]) == 0
    assert len(rows()) == 2


def test_what_is_printed_without_a_terminal(capfd: pytest.CaptureFixture) -> None:
    assert main([*QUICKSTART, *TINY]) == 0
    out, err = capfd.readouterr()
    assert "round 0  clean" in err  # as in rounds.csv
    assert "(2 of 2 done)" in err
    assert "main accuracy" in out
    assert "backdoor final" in out
    assert "2 of 2" in out  # both rounds are a burst


def test_wandb_offline_through_the_config() -> None:
    logger = ["--trainer.logger=lightning.pytorch.loggers.WandbLogger",
              "--trainer.logger.offline=true", "--trainer.logger.save_dir=run",
              "--trainer.logger.project=leadfl"]  # fmt: skip
    assert main([*QUICKSTART, *TINY, *logger]) == 0
    assert len(rows()) == 2
    assert main([*QUICKSTART, *TINY, *logger]) == 0  # a second run has a folder of its own
    assert len(rows("run/logs/version_1")) == 2
    offline = next(Path("run/wandb").glob("offline-run-*"))
    assert next(iter(offline.glob("*.wandb"))).stat().st_size > 0


def test_tensorboard_through_the_config() -> None:
    logger = ["--trainer.logger=lightning.pytorch.loggers.TensorBoardLogger",
              "--trainer.logger.save_dir=run"]  # fmt: skip
    assert main([*QUICKSTART, *TINY, *logger]) == 0
    assert list(Path("run").rglob("events.out.tfevents.*"))


def test_csv_has_the_documented_names() -> None:
    assert main([*QUICKSTART, *TINY]) == 0
    with Path("run/logs/version_0/metrics.csv").open() as file:
        names = set(csv.DictReader(file).fieldnames or [])
    assert {
        "val/clean_accuracy", "val/backdoor_accuracy", "val/backdoor_accuracy_avg",
        "round/malicious_sampled", "round/malicious_selected", "round/update_norm",
        "train/loss", "train/regulariser", "epoch", "step",
    } <= names  # fmt: skip


def test_diagnostics_are_added_to_the_callbacks_of_the_trainer() -> None:
    callbacks = ["--trainer.callbacks+=RunReport", "--diagnostics+=AttackEffect",
                 "--diagnostics+=lightning.pytorch.callbacks.DeviceStatsMonitor"]  # fmt: skip
    assert main([*QUICKSTART, *TINY, *callbacks]) == 0
    assert float(rows()[0]["attack_effect/norm"]) > 0
    saved = yaml.safe_load(Path("run/logs/version_0/config.yaml").read_text())
    names = [callback["class_path"].rpartition(".")[2] for callback in saved["diagnostics"]]
    assert names == ["AttackEffect", "DeviceStatsMonitor"]
    assert [c["class_path"] for c in saved["trainer"]["callbacks"]] == ["leadfl_pl.RunReport"]


def test_last_goes_on_with_the_run_and_reports_all_of_it() -> None:
    assert main([*QUICKSTART, *TINY]) == 0
    two = rows()
    assert main([*QUICKSTART, *TINY, "--trainer.max_epochs=3", "--ckpt_path=last"]) == 0
    three = rows("run/logs/version_1")
    assert three[:2] == two
    assert len(three) == 3
    assert main([*QUICKSTART, *TINY, "--trainer.max_epochs=3",
                 "--trainer.default_root_dir=other"]) == 0  # fmt: skip
    assert rows("other/logs/version_0") == three


def test_validate_measures_a_checkpoint(capsys: pytest.CaptureFixture) -> None:
    assert main([*QUICKSTART, *TINY]) == 0
    capsys.readouterr()
    flags = ["validate", *QUICKSTART[1:], *TINY, "--ckpt_path=run/checkpoints/version_0/last.ckpt"]
    assert main(flags) == 0
    printed = re.search(r"val/clean_accuracy\W+([\d.]+)", capsys.readouterr().out)
    assert float(printed[1]) == pytest.approx(float(rows()[-1]["val/clean_accuracy"]))


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("fit", "validate", "test", "init", "sweep", "report"):
        assert len([line for line in lines if line.split()[:1] == [name]]) == 1


@pytest.mark.parametrize("name", ["fit", "validate", "test", "init", "sweep", "report"])
def test_every_subcommand_has_help(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main([name, "--help"]))
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("args", [["predict"], ["nope"], []])
def test_an_unknown_subcommand_is_one_sentence(
    args: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(args) == 2
    assert (
        "SUBCOMMAND must be one of fit, validate, test, experiment, init" in capsys.readouterr().err
    )


def test_the_script_exits_with_the_code() -> None:
    command = [sys.executable, str(ROOT / "cli.py"), *QUICKSTART, "--model.defense.alpha=-1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    wrong = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("devices", ["2", "auto"])
def test_several_devices_give_the_bits_of_one(devices: str) -> None:
    script = [sys.executable, str(ROOT / "cli.py"), *QUICKSTART, *TINY,
              f"--trainer.devices={devices}", "--trainer.default_root_dir=two"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(script, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert main([*QUICKSTART, *TINY]) == 0
    assert rows("two/logs/version_0") == rows()


def test_the_global_model_comes_out_of_a_checkpoint_without_naming_its_class() -> None:
    data = fl.Digits()
    data.setup()
    flags = ["--model.model.mean=0.25", "--trainer.max_epochs=1"]
    assert main([*QUICKSTART, *TINY, *flags]) == 0
    network = fl.global_model("run/checkpoints/version_0/last.ckpt")
    assert type(network) is fl.DigitsNet
    assert float(network[0].mean) == 0.25
    images, labels = data.test_set
    accuracy = (network(images).argmax(dim=1) == labels).float().mean()
    assert float(accuracy) == pytest.approx(float(rows()[-1]["val/clean_accuracy"]))


def test_a_run_from_python_has_no_class_to_name() -> None:
    fit(1)
    with pytest.raises(fl.ConfigError, match="does not say how its network is made"):
        fl.global_model("run/checkpoints/version_0/last.ckpt")


class RaisesAfterASecondRound(Callback):
    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if trainer.current_epoch == 1:
            raise KeyError("mine")


def test_an_error_after_a_round_keeps_its_traceback() -> None:
    callback = f"--trainer.callbacks+={__name__}.{RaisesAfterASecondRound.__name__}"
    with pytest.raises(KeyError, match="mine"):
        main([*QUICKSTART, *TINY, callback])


def test_without_a_logger_a_run_goes_on_in_its_folder() -> None:
    short = ["fit", f"--config={ROOT}/configs/quickstart.yaml", "--trainer.logger=false"]
    short += ["--trainer.federation.local_epochs=1", "--trainer.default_root_dir=run"]
    assert run([*short, "--trainer.max_epochs=1"]) == 0
    assert run([*short, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    assert not list(Path("run").glob("*.yaml"))


def test_a_client_that_makes_its_own_network_is_saved_without_how_it_is_made() -> None:
    config = SimpleNamespace(as_dict=lambda: {"model": {"class_path": "model.Client"}})
    checkpoint: dict[str, Any] = {}
    SaveConfig(None, config).on_save_checkpoint(None, None, checkpoint)
    assert checkpoint == {}
