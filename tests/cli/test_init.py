"""A configuration without paths, for any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from leadfl_pl.cli.main import main

CONFIGS = ROOT / "configs"
ONE_ROUND = ["--trainer.max_epochs=1", "--trainer.federation.local_epochs=1"]


def written(file: str) -> dict:
    return yaml.safe_load(Path(file).read_text())


def test_without_a_config_it_is_the_quickstart() -> None:
    assert main(["init", "own.yaml"]) == 0
    assert main(["init", "copy.yaml", f"--config={CONFIGS}/quickstart.yaml"]) == 0
    own, copy = written("own.yaml"), written("copy.yaml")
    assert own["trainer"].pop("devices") == "1"  # as a flag, the number is a text
    assert copy["trainer"].pop("devices") == 1
    assert own["trainer"].pop("default_root_dir") == "runs/own"
    assert copy["trainer"].pop("default_root_dir") == "runs/copy"
    assert own == copy


def test_flags_change_what_is_written() -> None:
    assert main(["init", "own.yaml", "--model.defense", "LDP"]) == 0
    assert written("own.yaml")["model"]["init_args"]["defense"]["class_path"] == "leadfl_pl.LDP"


def test_what_is_written_runs_elsewhere_and_names_no_other_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["init", "own.yaml", f"--config={CONFIGS}/quickstart.yaml"]) == 0
    assert ".yaml" not in Path("own.yaml").read_text()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "own.yaml").rename(tmp_path / "elsewhere/own.yaml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["fit", "--config=own.yaml", *ONE_ROUND]) == 0
    for subcommand in ("validate", "test"):
        assert main([subcommand, "--config=own.yaml", *ONE_ROUND, "--ckpt_path=last"]) == 0


def test_print_config_prints_what_init_writes(capsys: pytest.CaptureFixture) -> None:
    flags = [f"--config={CONFIGS}/released.yaml", "--trainer.default_root_dir=runs/mine"]
    assert main(["init", "own.yaml", *flags]) == 0
    assert capsys.readouterr().out == "leadfl-pl fit --config own.yaml trains it\n"
    with pytest.raises(SystemExit):
        main(["fit", *flags, "--print_config"])
    assert capsys.readouterr().out == Path("own.yaml").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["there.yaml"], "there.yaml cannot be written: File exists"),
        (["nowhere/own.yaml"], "nowhere/own.yaml cannot be written: No such file or directory"),
        ([], "init must be followed by the file to write"),
        (["--config=there.yaml"], "init must be followed by the file to write"),
        (["own.yaml", "--config=missing.yaml"], "missing.yaml: file does not exist"),
        (["own.yaml", "--config=there.yaml"], "config = there.yaml must have keys"),
        (
            ["own.yaml", "--model.defense=Nope"],
            "model.defense = Nope: neither such a class nor a file",
        ),
    ],
)
def test_what_cannot_be_written_is_one_sentence(
    args: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    Path("there.yaml").write_text("mine")
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main(["init", *args]))
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line[:6] == "error:"]
    assert message in line
    assert Path("there.yaml").read_text() == "mine"
    assert not Path("own.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--help"], "usage: leadfl-pl init"),
        (["--trainer.federation.aggregator.help", "Krum"], "Krum: the one update with"),
    ],
)
def test_help_is_shown_and_not_written(flags, shown, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main(["init", "mine.yaml", *flags]))
    assert not end.value.code
    assert shown in capsys.readouterr().out
    assert not Path("mine.yaml").exists()
