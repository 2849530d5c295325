"""Settings stay with their class, and what is wrong in a file is one sentence that names it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from jsonargparse import _typehints

from leadfl_pl.cli.federated import FederatedCLI
from leadfl_pl.cli.main import main

QUICKSTART = f"--config={ROOT / 'configs/quickstart.yaml'}"
RELEASED = f"--model.defense={ROOT / 'configs/defenses/leadfl_released.yaml'}"
SCHEDULE = "--trainer.federation.schedule"


@pytest.fixture(autouse=True)
def _parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: FederatedCLI) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(FederatedCLI, "before_instantiate_classes", stop)


def parsed(*flags: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration that the flags make of the quickstart."""
    seen = []

    def stop(self: FederatedCLI) -> None:
        seen.append(self.config.fit)
        raise SystemExit(0)

    monkeypatch.setattr(FederatedCLI, "before_instantiate_classes", stop)
    with pytest.raises(SystemExit):
        main(["fit", QUICKSTART, *flags])
    return seen[0]


LATER = """
model:
  init_args:
    defense:
      class_path: {name}
      init_args: {{{settings}}}
"""


@pytest.mark.parametrize(
    ("flags", "name", "formulation"),
    [
        (["--model.defense", "LDP"], "LDP", "paper"),
        (["--model.defense=leadfl_pl.LDP"], "LDP", "paper"),
        (["--config=ldp.yaml"], "LDP", "paper"),
        ([f"--model.defense={ROOT}/configs/defenses/ldp.yaml"], "LDP", "paper"),
        (["--model.defense", "LeadFL"], "LeadFL", "released"),
        (["--model.defense=leadfl_pl.defenses.leadfl.LeadFL"], "LeadFL", "released"),
        (["--config=leadfl.yaml"], "LeadFL", "released"),
    ],
)
def test_another_class_starts_from_its_defaults_and_the_same_one_keeps_its_settings(
    flags: list[str], name: str, formulation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ldp.yaml").write_text(LATER.format(name="leadfl_pl.LDP", settings="scale: 0.2"))
    Path("leadfl.yaml").write_text(LATER.format(name="LeadFL", settings="clip: 0.2"))
    defense = parsed(RELEASED, *flags, monkeypatch=monkeypatch).model.init_args.defense
    assert defense.class_path.rpartition(".")[2] == name
    assert defense.init_args.formulation == formulation


def test_settings_may_follow_the_class_that_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [f"{SCHEDULE}=FixedSchedule", f"{SCHEDULE}.num_malicious=2"]
    schedule = parsed(*flags, monkeypatch=monkeypatch).trainer.federation.schedule
    assert schedule.init_args.as_dict() == {"num_malicious": 2}


def test_jsonargparse_is_as_it_was_after_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _typehints.discard_init_args_on_class_path_change
    parsed("--model.defense=LDP", monkeypatch=monkeypatch)
    assert _typehints.discard_init_args_on_class_path_change is before


def test_jsonargparse_still_asks_the_function_that_the_parser_replaces() -> None:
    name = "discard_init_args_on_class_path_change"
    parameters = inspect.signature(getattr(_typehints, name)).parameters
    assert list(parameters) == ["parser_or_action", "prev_val", "value"]
    whole = _typehints.ActionTypeHint.discard_init_args_on_class_path_change  # of configurations
    for caller in (_typehints.adapt_class_type, whole):
        assert name in caller.__code__.co_names, f"{caller.__qualname__} no longer calls {name}"


FILES = {
    "copied.yaml": (ROOT / "configs/quickstart.yaml").read_text(),
    "federation.yaml": "trainer:\n  federation: federations/bursty_multi_krum.yaml\n",
    "schedule.yaml": "schedule: ../schedules/bursty.yaml\n",
    "twice.yaml": "seed_everything: 0\nseed_everything: 1\n",
    "alpha_twice.yaml": "class_path: LeadFL\ninit_args:\n  alpha: 0.1\n  alpha: 0.2\n",
    "clients_twice.yaml": "num_clients: 10\nnum_clients: 20\n",
    "broken.yaml": "model:\n  lr: [1,\n",
    "broken_defense.yaml": "class_path: [LeadFL\n",
    "empty.yaml": "",
    "comment.yaml": "# nothing\n",
    "list.yaml": "- 1\n",
    "scalar.yaml": "hello\n",
    "typo.yaml": "trainer: {max_epoch: 3}\n",
    "nan.yaml": "class_path: LeadFL\ninit_args: {alpha: nan}\n",
    "itself.yaml": "model: &m [*m]\n",
}
COPIED = (
    "no file that can be read; a path in a config is relative to the config's folder (leadfl-pl "
    "init or --print_config writes a config without relative paths)"
)
NOT_A_CLASS = "neither such a class nor a file of that name"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=copied.yaml"], f"model.defense = defenses/leadfl.yaml: {COPIED}"),
        (["--config=federation.yaml"],
         f"trainer.federation = federations/bursty_multi_krum.yaml: {COPIED}"),
        (["--trainer.federation=schedule.yaml"],
         f"trainer.federation.schedule = ../schedules/bursty.yaml: {COPIED}"),
        (["--data=nowhere.yaml"], f"data = nowhere.yaml: {COPIED}"),
        (["--config=twice.yaml"],
         "config = twice.yaml, line 2: the key seed_everything is given twice"),
        (["--model.defense=alpha_twice.yaml"],
         "model.defense = alpha_twice.yaml, line 4: the key alpha is given twice"),
        (["--trainer.federation=clients_twice.yaml"],
         "trainer.federation = clients_twice.yaml, line 2: the key num_clients is given twice"),
        (["--config=broken.yaml"], "config = broken.yaml, line 3: no YAML, "),
        (["--model.defense=broken_defense.yaml"],
         "model.defense = broken_defense.yaml, line 2: no YAML, "),
        (["--config=empty.yaml"], "config = empty.yaml, line 1: there is nothing in it"),
        (["--config=comment.yaml"], "config = comment.yaml, line 1: there is nothing in it"),
        (["--model.defense=empty.yaml"],
         "model.defense = empty.yaml, line 1: there is nothing in it"),
        (["--config=list.yaml"], "config = list.yaml must have keys such as model, got a list"),
        (["--config=scalar.yaml"],
         "config = scalar.yaml must have keys such as model, got a word"),
        (["--model.defense=list.yaml"],
         "model.defense must be a class, or class_path and init_args, got [1]"),
        (["--config=binary.yaml"], "a config must be UTF-8 text: "),
        (["--model.defense=binary.yaml"], "model.defense must be a file of UTF-8 text"),
        (["--config=itself.yaml"], "config = itself.yaml, maximum recursion depth exceeded"),
        (["--config=typo.yaml"], "no setting; did you mean trainer.max_epochs?"),
        (["--config=."], "path is not a file"),
        (["--seed_everything=-1"], "seed_everything must be a whole number in 0 .. 4294967295, got "
                                   "seed_everything = -1"),
        (["--seed_everything=1099511627776"], "got seed_everything = 1099511627776"),
        (["--seed_everything=true"], "got seed_everything = true"),
        (["--seed_everything=1.5"], "got seed_everything = 1.5"),
        (["--model.defense.alpha=nan"], "model.defense.alpha must be a finite number, got nan"),
        (["--model.defense=nan.yaml"], "model.defense.alpha must be a finite number, got nan"),
        (["--trainer.federation.attack=ALIE", "--trainer.federation.attack.z=abc"],
         "trainer.federation.attack.z must be float or null, got abc"),
        ([f"{SCHEDULE}=FixedSchedule"],
         f"{SCHEDULE[2:]}.num_malicious must be given: FixedSchedule has no default for it"),
        (["--model=null"], "model must be given"),
        (["--trainer.logger=Foo"], f"trainer.logger = Foo: {NOT_A_CLASS}"),
        (["--trainer.callbacks+=Foo"], f"trainer.callbacks = Foo: {NOT_A_CLASS}"),
        (["--model.model=leadfl_pl.Nope"], "leadfl_pl.Nope: the module leadfl_pl has no Nope"),
        (["--model.model=nowhere.Net"], "nowhere.Net: there is no module nowhere, here or install"),
        (["--model.model=Linear"], "model.model = Linear is the name of several classes: Give the"),
        (["--trainer.federation.aggregator=leadfl_pl.LeadFL"],
         f"trainer.federation.aggregator = leadfl_pl.LeadFL: {NOT_A_CLASS}; known are "),
        (["--trainer.federation.aggregator=null"],
         f"trainer.federation.aggregator = null: {NOT_A_CLASS}; known are "),
        (["--trainer.federation=3"],
         "trainer.federation must be settings or a file with them, got 3"),
        (["--trainer.federation.attack.position=[1]"],
         "trainer.federation.attack.position must be list with 2 elements, got [1]"),
        (["--trainer.precision=foo"], "trainer.precision must be one of 64, 32, 16 or one of "),
        (["--trainer.max_epochs="], "trainer.max_epochs must be int or null, got nothing"),
        (["--model.lr"], "--model, or a setting below it, must have a value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_with_the_key_and_the_value(
    flags: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main(["fit", QUICKSTART, *flags]))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
