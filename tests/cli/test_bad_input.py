"""Bad input of every kind is one sentence and exit status 2, before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from leadfl_pl.cli.main import main

QUICKSTART = f"--config={ROOT / 'configs/quickstart.yaml'}"
FEDERATION = "--trainer.federation"
TINY = [
    QUICKSTART,
    "--trainer.max_epochs=1",
    f"{FEDERATION}.local_epochs=null",
    f"{FEDERATION}.local_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
    "--trainer.default_root_dir=run",
]
METHODS = """
import torch
from torch import nn
from leadfl_pl import *

"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


def refusal(capsys: pytest.CaptureFixture, *args: str) -> str:
    """The one sentence that the command prints."""
    with pytest.raises(SystemExit) as end:
        raise SystemExit(main([*args]))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert not list(Path().rglob("*.ckpt"))  # no round was trained
    return line


def fit_refusal(capsys: pytest.CaptureFixture, *flags: str) -> str:
    return refusal(capsys, "fit", *TINY, *flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("server_lr=.inf", "trainer.federation.server_lr must be a finite number, got server_lr ="),
        ("server_lr=1e30", "trainer.federation.server_lr must be <= 1000000, got server_lr = 1e+3"),
        ("num_clients=1099511627776", "trainer.federation.num_clients must be <= 1000000, got num"),
        ("num_clients=1", "trainer.federation.clients_per_round must be <= num_clients = 1, got "),
        ("local_steps=1099511627776", "trainer.federation.local_steps must be <= 1000000, got loc"),
        ("max_failures=-1", "trainer.federation.max_failures must be >= 0, got max_failures = -1"),
        ("seed=-1", "trainer.federation.seed must be >= 0, got seed = -1"),
        ("seed=1099511627776", "trainer.federation.seed must be <= 4294967295, got seed = 10995"),
        ("schedule.burst=11", "BurstySchedule: burst must be <= period = 10, got burst = 11"),
        ("attack=Attack", "trainer.federation.attack must be a subclass of Attack that overrides "),
        ("schedule=Schedule", "trainer.federation.schedule must be a subclass of Schedule that "),
        ("aggregator=Aggregator", "trainer.federation.aggregator must define combine() or aggreg"),
    ],
)
def test_a_federation_that_cannot_be(
    flag: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert message in fit_refusal(capsys, f"{FEDERATION}.{flag}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.lr=1e999"], "model.lr must be a finite number, got lr = inf"),
        (["--model.momentum=1"], "model.momentum must be < 1, got momentum = 1.0"),
        (["--model.model.std=0"], "Normalize: std must be > 0.0, got std = 0.0"),
        (["--model.model.mean=.inf"], "Normalize: mean must be a finite number, got mean = inf"),
        (["--model.model=torch.nn.Identity"], "model.model = Identity must have trainable param"),
        (["--model.model.num_classes=-1"], "cannot be made of num_classes = -1, "),
        (["--model.defense=ClientDefense"], "model.defense must be a subclass of ClientDefense t"),
        (["--data.batch_size=0"], "data.batch_size must be >= 1, got batch_size = 0"),
        (["--trainer.min_epochs=5"], "trainer.min_epochs must be <= max_epochs = 1, got min_epoc"),
        (["--trainer.profiler=foo"], "trainer.profiler must be one of simple, advanced, pytorch, "),
        (["--trainer.default_root_dir=s3://a/b"], "trainer.default_root_dir must be a folder of "),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=foo"],
         "trainer.callbacks: EarlyStopping must have monitor one of epoch, step, round/mal"),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=foo"],
         "got monitor = foo"),
        (["--trainer.callbacks+=LearningRateFinder"],
         "trainer.callbacks must leave the training of the clients as it is, got LearningRateFind"),
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=/proc/x"], "'/proc/x'"),
        ([f"--ckpt_path={'a' * 300}"], "ckpt_path must be a checkpoint or last, got ckpt_path = a"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be(
    flags: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert message in fit_refusal(capsys, *flags)


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_a_measurement_needs_a_checkpoint(subcommand: str, capsys: pytest.CaptureFixture) -> None:
    line = refusal(capsys, subcommand, *TINY)
    assert line == "error: ckpt_path must be a checkpoint or last, got ckpt_path = null"


@pytest.mark.parametrize(
    ("flags", "content", "message"),
    [
        (["--data=FederatedDataModule"], "", "data must be a subclass of FederatedDataModule, "),
        (["--data.split=Split"], "", "data.split must be a subclass of Split, got the ab"),
        (["--data=leadfl_pl.MNIST", "--data.data_dir=null"], "",
         "data.data_dir must be str, got null"),
        ([f"{FEDERATION}.attack=ALIE", f"{FEDERATION}.attack.omniscient=null"], "",
         "trainer.federation.attack.omniscient must be bool, got null"),
        (["--config=mine.yaml"], "model: !foo x\n", "config = mine.yaml, line 1: no YAML, "),
        (["--config=mine.yaml"], "1: 2\n", "config must have keys that are words, got 1"),
        (["--config=mine.yaml"], "null\n", "config must be a file with keys such as model, got n"),
        (["--trainer.federation=mine.yaml"], "- 1\n",
         "trainer.federation = mine.yaml must be a file with settings, a line each"),
        (["--model.defense=mine.Mine"], "",
         "model.defense = mine.Mine: there is no module mine, here or installed; known are Consta"),
    ],
)  # fmt: skip
def test_a_file_or_a_class_that_cannot_be(
    flags: list[str], content: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    Path("mine.yaml").write_text(content)
    assert message in fit_refusal(capsys, *flags)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("class Mine(:", "model.defense = mine.Mine cannot be used: SyntaxError("),
        ("mine = 1", "model.defense = mine.Mine: the module mine has no Mine; known are Constan"),
        ("raise RuntimeError('broken')", "cannot be used: RuntimeError('broken')"),
        ("import nowhere", "cannot be used: ModuleNotFoundError("),
        ("from abc import *\nfrom leadfl_pl import *\nclass Mine(ClientDefense, ABC):\n"
         "    @abstractmethod\n    def this(self): ...", "cannot be used: Mine must define this"),
    ],
)  # fmt: skip
def test_why_a_users_module_cannot_be_used(
    module: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    Path("mine.py").write_text(module)
    assert message in fit_refusal(capsys, "--model.defense=mine.Mine")


BASES = {
    "ClientDefense": "--model.defense",
    "Attack": f"{FEDERATION}.attack",
    "Schedule": f"{FEDERATION}.schedule",
    "Aggregator": f"{FEDERATION}.aggregator",
    "Median": f"{FEDERATION}.aggregator",
    "Split": "--data.split",
    "Digits": "--data",
}


@pytest.mark.parametrize(
    ("base", "method", "body", "message"),
    [
        ("ClientDefense", "finnish(self, d, g)", "return d",
         "model.defense must be a subclass of ClientDefense that overrides one of its methods"),
        ("ClientDefense", "finish(self, d)", "return d",
         "Mine.finish must take (self, delta, generator), got (self, d)"),
        ("ClientDefense", "finish(self, d, g)", "raise KeyError('a')",
         "model.defense = Mine, tried once, raised KeyError('a') in finish() at "),
        ("ClientDefense", "finish(self, d, g)", "return None", "Mine.finish must return a tensor"),
        ("ClientDefense", "after_step(self, step, state)", "step.params[0].fill_(torch.nan)",
         "Mine.after_step must leave finite numbers, got NaN or infinity"),
        ("Attack", "taks(self, x, y)", "return [(x, y)]", "got Mine with taks"),
        ("Attack", "check(self, shape, num_classes)", "raise KeyError('a')",
         "Mine.check raised KeyError('a') in check() at "),
        ("Attack", "corrupt(self, u, m, g)", "return u[:1]", "Mine.corrupt must return a tensor o"),
        ("Attack", "corrupt(self, u, m, g)", "raise KeyError('a')",
         "trainer.federation.attack = Mine, tried once, raised KeyError('a') in corrupt() at "),
        ("Attack", "tasks(self, x, y)", "return [(x[:0], y[:0])]", "one image or more, got none"),
        ("Attack", "project(self, g)", "return [x * torch.nan for x in g]", "finite numbers, got "),
        ("Schedule", "cohort(self, population, round)", "return None",
         "Mine.cohort must return the Cohort of round 0, got None"),
        ("Schedule", "cohort(self, p, t)", "return super().cohort(p, t)._replace("
         "client_ids=(0,) * 10)", "Mine.cohort must return 10 different clients in 0 .. 99, got ("),
        ("Schedule", "sample(self, p, t, n)", "return x", "asked for round 0, raised NameError("),
        ("Schedule", "malicious_range(self)", "return 3", "Mine: malicious_range() must be 2 whol"),
        ("Schedule", "malicious_range(self)", "return 6, 2", "the fewest and the most, got 6 and "),
        ("Aggregator", "combin(self, u, w)", "return u[0]", "must define combine() or aggregate()"),
        ("Aggregator", "combine(self, u)", "return u[0]",
         "Mine.combine must take (self, updates, weights), got (self, u)"),
        ("Aggregator", "combine(self, u, w)", "raise KeyError('a')",
         "trainer.federation.aggregator = Mine, tried once, raised KeyError('a') in combine() at "),
        ("Aggregator", "combine(self, u, w)", "return u[0] * torch.nan", "Mine must give a finite"),
        ("Median", "__init__(self)", "self.f = 1", "Mine.__init__ must call super().__init__() f"),
        ("Split", "__call__(self, labels, k, seed)", "raise KeyError('a')",
         "Mine raised KeyError('a') in __call__() at "),
        ("Digits", "load(self)", "raise KeyError('a')", "Mine.load raised KeyError('a') in load()"),
        ("Digits", "setup(self)", "pass", "the run cannot start: TypeError("),
        ("Digits", "prepare_data(self)", "raise OSError('x')", "the run cannot start: OSError(x)"),
        ("Digits", "val_dataloader(self)", "return []", "Mine.val_dataloader raised StopIteration"),
    ],
)  # fmt: skip
def test_a_users_method_that_cannot_work_is_named(
    base: str, method: str, body: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    text = f"{METHODS}class Mine({base}):\n    def {method}:\n        {body}\n"
    Path("mine.py").write_text(text)
    assert message in fit_refusal(capsys, f"{BASES[base]}=mine.Mine")


TORCHRUN = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LOCAL_WORLD_SIZE", "0", "a whole number in 1 .. 1000000, got LOCAL_WORLD_SIZE = 0"),
        ("WORLD_SIZE", "3", "in 2 .. 1000000, a multiple of 2, got WORLD_SIZE = 3"),
        ("RANK", "5", "the environment variable RANK must be a whole number in 0 .. 1, got RANK ="),
        ("LOCAL_RANK", "7", "the environment variable LOCAL_RANK must be a whole number in 0 .. 1"),
        ("MASTER_PORT", "abc", "in 1 .. 65535, got MASTER_PORT = abc"),
    ],
)
def test_a_launcher_that_contradicts_itself(
    name: str,
    value: str,
    message: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, number in (TORCHRUN | {name: value}).items():
        monkeypatch.setenv(variable, number)
    assert message in fit_refusal(capsys, "--trainer.devices=2")


def test_a_key_given_twice_in_a_sweep(capsys: pytest.CaptureFixture) -> None:
    Path("sweep.yaml").write_text("method: grid\nmethod: grid\n")
    line = refusal(capsys, "sweep", "sweep.yaml")
    assert line == "error: sweep.yaml must be YAML: line 2: the key method is given twice"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("devices=1099511627776", "trainer.devices must be a number of processes >= 1 or auto, "),
        ("accelerator=", "trainer.accelerator must be auto or one that this machine has, "),
        ("limit_val_batches=1e30", "trainer.limit_val_batches must be <= 1000000, got limit_val"),
        ("log_every_n_steps=-1", "trainer.log_every_n_steps must be a whole number >= 0, got log"),
        ("model_registry=a", "trainer.model_registry is not used in a federation: "),
        ("strategy=", "trainer.strategy must be auto or federated, any other would average "),
    ],
)
def test_an_argument_of_the_trainer_that_cannot_be(
    flag: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert message in fit_refusal(capsys, f"--trainer.{flag}")
