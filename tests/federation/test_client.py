"""The clients in anybody's plain Trainer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from tiny import NetWithBatchNorm, SmallImages, small_client, small_trainer, weights
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import leadfl_pl as fl


def plain_trainer(**kwargs) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **{"max_epochs": 2} | quiet | kwargs)


def loader() -> DataLoader:
    module = SmallImages()
    module.setup()
    images = module.train_set.images.float() / 255
    return DataLoader(TensorDataset(images, module.train_set.labels), batch_size=16)


def by_hand(defense: fl.LeadFL | None, epochs: int = 2) -> torch.Tensor:
    """LeadFL as Algorithm 1 of the report, in a bare loop."""
    client = small_client()
    params = list(client.model.parameters())
    previous, step = None, 0
    torch.manual_seed(11)
    for _ in range(epochs):
        for x, y in loader():
            current = [p.detach().clone() for p in params]
            grads = torch.autograd.grad(F.cross_entropy(client.model(x), y), params)
            with torch.no_grad():
                for i, (p, g) in enumerate(zip(params, grads, strict=True)):
                    tilde = current[i] - 0.05 * g
                    p.copy_(tilde)
                    if defense is not None and previous is not None:
                        eta_h = current[i] - tilde + (current[i] - previous[i])
                        v = 1 - eta_h
                        p -= (
                            0.05 * defense.alpha * (v / v.norm()).clamp(-defense.clip, defense.clip)
                        )
            previous, step = current, step + 1
    return weights(client)


@pytest.mark.parametrize("defense", [None, fl.LeadFL(alpha=0.4, clip=0.2)], ids=["none", "leadfl"])
def test_the_client_in_a_plain_trainer_runs_algorithm_1(defense: fl.LeadFL | None) -> None:
    client = small_client(defense)
    torch.manual_seed(11)
    plain_trainer().fit(client, loader())
    torch.testing.assert_close(weights(client), by_hand(defense), rtol=1e-5, atol=1e-6)


def test_leadfl_client_is_the_client_with_leadfl() -> None:
    client = small_client(fl.LeadFL(alpha=0.7, clip=0.1, norm="squared"))
    other = fl.LeadFLClient(NetWithBatchNorm(), alpha=0.7, clip=0.1, norm="squared", lr=0.05)
    other.load_state_dict(client.state_dict())
    for c in (client, other):
        torch.manual_seed(11)
        plain_trainer().fit(c, loader())
    assert torch.equal(weights(client), weights(other))
    assert isinstance(other, LightningModule)


def test_it_fits_validates_and_tests_with_a_datamodule() -> None:
    client = small_client()
    trainer = plain_trainer(max_epochs=20, callbacks=[fl.BackdoorEvaluation(fl.PatternBackdoor())])
    trainer.fit(client, datamodule=SmallImages(batch_size=16))
    assert trainer.global_step == 20 * 15
    assert {"train/loss", "val/clean_accuracy", "val/backdoor_accuracy"} <= set(
        trainer.callback_metrics
    )
    (tested,) = trainer.test(client, datamodule=SmallImages(), verbose=False)
    assert set(tested) == {
        "test/clean_accuracy",
        "test/backdoor_accuracy",
        "test/backdoor_accuracy_all",
    }
    assert 0.3 < tested["test/clean_accuracy"] <= 1.0


def test_a_later_fit_has_its_own_steps_and_its_own_noise(monkeypatch) -> None:
    """The fits of one Trainer are the rounds of a client in NVFlare."""
    rounds = []

    def start_round(self, noise_seed, num_steps, initial=None) -> None:
        rounds.append((noise_seed, num_steps))
        start(self, noise_seed, num_steps, initial)

    start = fl.FederatedClient.start_round
    monkeypatch.setattr(fl.FederatedClient, "start_round", start_round)
    client, trainer = small_client(), plain_trainer(max_epochs=2)
    trainer.fit(client, loader())
    trainer.fit_loop.max_epochs = 4  # as flare.patch does
    trainer.fit(client, loader())
    (first_seed, first), (second_seed, second) = rounds
    assert first == second == 30
    assert first_seed != second_seed


class Stream(IterableDataset):
    """Batches, nobody knows how many."""

    def __iter__(self):
        return iter(loader())


def test_a_loader_without_a_length_needs_max_steps_where_a_defense_asks_for_it() -> None:
    stream = DataLoader(Stream(), batch_size=None)
    for defense in (fl.NoDefense(), fl.LeadFL()):  # which do not ask
        plain_trainer(max_epochs=1).fit(small_client(defense), stream)
    for settings in ({"max_epochs": 1}, {"max_epochs": -1, "max_time": "00:00:01:00"}):
        with pytest.raises(fl.ConfigError, match="num_steps must be the number of local steps"):
            plain_trainer(**settings).fit(small_client(fl.Contraction()), stream)
    seen = set()

    class Told(fl.ClientDefense):
        def after_step(self, step, state):
            seen.add(step.num_steps)

    plain_trainer(max_steps=7).fit(small_client(Told()), stream)
    assert seen == {7}


def test_a_gradient_scaler_is_refused() -> None:
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(fl.ConfigError, match="must have no scaler, got one of MixedPrecision"):
        plain_trainer(plugins=[plugin]).fit(small_client(fl.SAM()), loader())


def test_noise_is_the_same_on_every_rank(monkeypatch) -> None:
    seeds = set()

    class Noisy(fl.ClientDefense):
        def after_step(self, step, state):
            seeds.add(step.generator.initial_seed())

    for seed in (1, 2):  # of processes that were not seeded
        trainer = plain_trainer(max_steps=2)
        monkeypatch.setattr(trainer.strategy, "broadcast", lambda value: 5)
        torch.manual_seed(seed)
        trainer.fit(small_client(Noisy()), loader())
    assert len(seeds) == 1


def test_a_malicious_client_learns_the_trigger_and_runs_no_defense() -> None:
    attack = fl.PatternBackdoor()
    client = fl.MaliciousClient(NetWithBatchNorm(), attack, lr=0.1)
    assert type(client.defense) is fl.NoDefense
    trainer = plain_trainer(max_epochs=25, callbacks=[fl.BackdoorEvaluation(attack)])
    trainer.fit(client, datamodule=SmallImages(batch_size=16))
    assert trainer.callback_metrics["val/backdoor_accuracy"] > 0.9


def test_a_malicious_step_is_the_balanced_gradient() -> None:
    attack = fl.PatternBackdoor(balance="fixed", backdoor_weight=0.25)
    start = small_client()
    start.model[3].p = 0.0  # dropout would draw once more in the sum than in the parts
    client = fl.MaliciousClient(start.model, attack, lr=0.1)
    batch = next(iter(loader()))
    state = {k: v.clone() for k, v in client.model.state_dict().items()}
    plain_trainer(max_epochs=1).fit(client, DataLoader([batch], batch_size=None))
    after = {k: v.clone() for k, v in client.model.state_dict().items()}
    client.model.load_state_dict(state)
    client.train()
    (xb, yb), (x, y) = attack.tasks(*batch)
    loss = 0.25 * F.cross_entropy(client(xb), yb) + 0.75 * F.cross_entropy(client(x), y)
    names, params = zip(*client.model.named_parameters(), strict=True)
    for name, p, g in zip(names, params, torch.autograd.grad(loss, params), strict=True):
        torch.testing.assert_close(after[name], (p - 0.1 * g).detach())


def test_evaluation_in_train_mode_moves_the_running_buffers_and_eval_mode_does_not() -> None:
    moved = {}
    for mode in ("eval", "train"):
        client = small_client(evaluation_mode=mode)
        before = weights(client)
        plain_trainer().validate(client, datamodule=SmallImages(), verbose=False)
        moved[mode] = not torch.equal(before, weights(client))
    assert moved == {"eval": False, "train": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lr": 0.0}, r"model\.lr must be > 0, got lr = 0\.0"), ({"momentum": 1.0}, "must be < 1")],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        fl.FederatedClient(NetWithBatchNorm(), **settings)


def test_a_defense_of_what_is_sent_is_refused_where_nothing_is_sent() -> None:
    class Halved(fl.ClientDefense):
        def finish(self, delta: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return delta / 2

    with pytest.raises(fl.ConfigError, match=r"must not define finish\(\).*got Halved: use a Fed"):
        plain_trainer().fit(small_client(Halved()), loader())


def test_callbacks_that_went_through_one_run_know_nothing_of_it_in_another() -> None:
    callback, report = fl.BackdoorEvaluation(fl.PatternBackdoor()), fl.RunReport()
    for rounds in (3, 2):
        plain_trainer(max_epochs=rounds, callbacks=[callback]).fit(
            small_client(), datamodule=SmallImages()
        )
        assert int(callback.average.rounds) == rounds
        trainer = small_trainer(rounds=rounds, callbacks=[report])
        trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
        assert [row["round"] for row in report.rows] == list(range(rounds))
    trainer.fit_loop.max_epochs = 4
    trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
    assert [row["round"] for row in report.rows] == [0, 1, 2, 3]


def test_a_checkpoint_without_a_defenses_memory_is_refused(tmp_path) -> None:
    path = tmp_path / "a.ckpt"
    for defense in (None, fl.FedProx()):
        trainer = plain_trainer(max_epochs=1)
        trainer.fit(small_client(defense), loader())
        trainer.save_checkpoint(path)
        if defense is None:
            plain_trainer().fit(small_client(), loader(), ckpt_path=path)
    with pytest.raises(fl.ConfigError, match=r"ckpt_path must be null .* FedProx, .* got"):
        plain_trainer().fit(small_client(fl.FedProx()), loader(), ckpt_path=path)


@pytest.mark.parametrize(
    ("attack", "unused"),
    [
        (fl.Neurotoxin(fl.PatternBackdoor()), "local"),
        (fl.A3FL(), "adapt"),
        (fl.ModelReplacement(fl.PatternBackdoor()), "corrupt"),
    ],
)
def test_an_attack_that_a_plain_trainer_would_carry_out_in_part_is_refused(attack, unused) -> None:
    client = fl.MaliciousClient(small_client().model, attack)
    with pytest.raises(fl.ConfigError, match=rf"attack must not define {unused}\(\), .* plain"):
        plain_trainer().fit(client, loader())
