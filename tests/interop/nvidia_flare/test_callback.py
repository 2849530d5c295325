"""Local training under ``flare.patch``: what is sent is what one would get by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

import nvflare.client.lightning as flare
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from local_training import GLOBAL, LR, Halved, ReadsInitial, State, batches, by_hand, network, same
from nvflare.app_common.abstract.fl_model import FLModel
from torch import Tensor
from torch.utils.data import DataLoader

import leadfl_pl as fl
from leadfl_pl.core.rng import derive_seed
from leadfl_pl.interop.nvflare import ClientDefenseCallback

CLIENT, SITE = 2, "site-2"


class Server:
    """Stands for NVFlare's client API: round t starts from ``models[t]``."""

    def __init__(self, models: list[State], prefix: str) -> None:
        self.models = [{prefix + name: t for name, t in model.items()} for model in models]
        self.prefix = prefix
        self.sent: list[State] = []
        self.steps: list[int] = []

    def receive(self) -> FLModel:
        return FLModel(params=self.models[len(self.sent)], current_round=len(self.sent))

    def send(self, model: FLModel, clear_cache: bool) -> None:
        params = {n.removeprefix(self.prefix): t.clone() for n, t in model.params.items()}
        self.sent.append(params)
        self.steps.append(model.meta["NUM_STEPS_CURRENT_ROUND"])


class Classifier(LightningModule):
    """A LightningModule of a user, with automatic optimization."""

    def __init__(self, **optimizer: float) -> None:
        super().__init__()
        self.net = network()
        self.settings = {"lr": LR} | optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), **self.settings)


SECOND = {n: 0.9 * t if t.is_floating_point() else t for n, t in GLOBAL.items()}
MODELS = [GLOBAL, SECOND]  # of two rounds


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Two rounds of a client; what it sent."""

    def rounds(module: LightningModule, *callbacks: ClientDefenseCallback, **trainer) -> Server:
        prefix = "model." if isinstance(module, fl.FederatedClient) else "net."
        server = Server(MODELS, prefix)
        api = {"receive": server.receive, "send": server.send, "get_config": dict}
        api |= {"init": lambda rank: None, "clear": lambda: None, "is_train": lambda: True}
        api |= {"is_evaluate": lambda: False, "is_submit_model": lambda: False}
        for name, replacement in api.items():
            monkeypatch.setattr(f"nvflare.app_opt.lightning.api.{name}", replacement)
        monkeypatch.setattr("leadfl_pl.interop.nvflare.callback.get_site_name", lambda: SITE)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"accelerator": "cpu", "enable_model_summary": False, "max_epochs": 1}
        trainer = Trainer(callbacks=list(callbacks), **quiet | trainer)
        flare.patch(trainer)
        for _ in MODELS:
            trainer.fit(module, DataLoader(batches(CLIENT), batch_size=None))
        return server

    return rounds


DEFENSES = [
    fl.LeadFL(alpha=5.0),
    fl.Contraction(half_life=1.0),
    fl.LDP(parameters="weights"),
    fl.FLWBC(),
    fl.FedProx(mu=2.0),
]
defenses = pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: type(d).__name__)


@defenses
def test_a_defense_of_a_federated_client_is_what_it_is_by_hand_to_the_bit(
    run, defense: fl.ClientDefense
) -> None:
    torch.manual_seed(3)
    server = run(fl.FederatedClient(network(), defense, lr=LR))
    for t, steps_before in enumerate([0, 4]):
        noise = derive_seed(3, "noise", steps_before)
        assert same(server.sent[t], by_hand(defense, noise, CLIENT, MODELS[t]))
        assert not same(server.sent[t], by_hand(fl.NoDefense(), noise, CLIENT, MODELS[t]))
    assert server.steps == [4, 4]


@defenses
def test_a_defense_in_the_callback_is_what_it_is_by_hand_to_the_bit(
    run, defense: fl.ClientDefense
) -> None:
    server = run(Classifier(), ClientDefenseCallback(defense))
    for t, start in enumerate(MODELS):
        noise = derive_seed(0, f"noise/{SITE}", t)
        assert same(server.sent[t], by_hand(defense, noise, CLIENT, start))


def test_without_a_defense_what_is_sent_is_as_without_the_callback(run) -> None:
    with_it, without = run(Classifier(), ClientDefenseCallback(fl.NoDefense())), run(Classifier())
    assert all(map(same, with_it.sent, without.sent))


def test_finish_changes_the_parameters_that_are_sent_and_nothing_else(run) -> None:
    plain, half = run(Classifier()), run(Classifier(), ClientDefenseCallback(Halved()))
    for start, trained, sent in zip(MODELS, plain.sent, half.sent, strict=True):
        for name, t in sent.items():
            is_parameter = name in dict(network().named_parameters())
            middle = start[name] + 0.5 * (trained[name] - start[name])
            assert t.equal(middle if is_parameter else trained[name])


def test_the_number_of_steps_is_the_trainers_in_every_round(run) -> None:
    """Of a fit of several epochs, with gradients of several batches in a step."""
    defense = ClientDefenseCallback(fl.Contraction(half_life=1.0))
    server = run(Classifier(), defense, max_epochs=3, accumulate_grad_batches=3)
    assert server.steps == [6, 6]


def test_a_callback_that_comes_after_the_patch_is_refused(run) -> None:
    class Late(ClientDefenseCallback):
        def setup(self, trainer, pl_module, stage) -> None:
            trainer.callbacks.append(trainer.callbacks.pop(trainer.callbacks.index(self)))

    with pytest.raises(fl.ConfigError, match=r"must be among .* when flare.patch\(trainer\) is ca"):
        run(Classifier(), Late(fl.LeadFL()))


def test_a_trainer_that_is_not_patched_is_refused() -> None:
    trainer = Trainer(
        callbacks=[ClientDefenseCallback(fl.LeadFL())], accelerator="cpu", max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    with pytest.raises(fl.ConfigError, match=r"must be among .* when flare.patch\(trainer\) is ca"):
        trainer.fit(Classifier(), DataLoader(batches(CLIENT), batch_size=None))


@pytest.mark.parametrize(
    ("defense", "sentence"),
    [
        (fl.SAM(), "must ask for no gradient at other parameters, got SAM"),
        (fl.LDP(formulation="released"), "must not ask where local epochs start"),
    ],
    ids=["SAM", "released"],
)
def test_what_cannot_be_followed_raises_and_the_hooks_are_gone(
    run, defense: fl.ClientDefense, sentence: str
) -> None:
    plain = run(Classifier())
    with pytest.raises(fl.ConfigError, match=sentence):
        run(Classifier(), ClientDefenseCallback(defense))
    assert all(map(same, run(Classifier()).sent, plain.sent))


def test_another_number_of_steps_than_was_said_raises(run) -> None:
    with pytest.raises(fl.ConfigError, match=r"num_steps must be 4, which .* got num_steps = 3"):
        run(Classifier(), ClientDefenseCallback(fl.Contraction(), num_steps=3))


def test_a_defense_that_does_not_ask_for_the_steps_may_be_stopped_early(run) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            trainer.should_stop = trainer.fit_loop.epoch_loop.batch_idx == 1

    server = run(Classifier(), Stop(), ClientDefenseCallback(fl.LeadFL()), max_epochs=2)
    assert server.steps == [2, 2]
    with pytest.raises(fl.ConfigError, match=r"num_steps must be 2, which .* got num_steps = "):
        run(Classifier(), Stop(), ClientDefenseCallback(fl.Contraction()), max_epochs=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([fl.LeadFL], r"defense must be a ClientDefense such as LeadFL\(\), got type"),
        ([ReadsInitial()], "defense must not need the run's initial model.*, got ReadsInitial"),
        ([fl.LeadFL(), 0], "num_steps must be >= 1, got num_steps = 0"),
        ([fl.LeadFL(), None, -1], "seed must be >= 0, got seed = -1"),
    ],
)
def test_bad_settings_are_one_sentence(arguments: list, sentence: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"ClientDefenseCallback.*{sentence}"):
        ClientDefenseCallback(*arguments)
