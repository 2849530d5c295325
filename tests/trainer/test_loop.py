"""The federated loop: what a round is, and what the rest of Lightning sees of it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import SingleDeviceStrategy
from tiny import Sent, SmallImages, TinyImages, small_client, small_trainer, weights
from torch.utils.data import DataLoader, TensorDataset

import leadfl_pl as fl
from leadfl_pl.core.rng import derive_seed, generator
from leadfl_pl.core.values import ClientUpdate
from leadfl_pl.data.base import as_float, epoch_batches
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.step_hooks import step_listener
from leadfl_pl.records.rounds import summary


def fit(client: fl.FederatedClient, **kwargs) -> fl.FederatedTrainer:
    trainer = small_trainer(**kwargs)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    return trainer


def federated_averaging_by_hand(rounds: int) -> torch.Tensor:
    """FedAvg in plain PyTorch: no Lightning, no loop of ours."""
    client = small_client()
    model = client.model
    module = SmallImages(batch_size=8)
    module.setup()
    parts = module.partition(12, seed=0)
    population = fl.Population(12, 4, 7, seed=0)
    for t in range(rounds):
        start = {k: v.clone() for k, v in model.state_dict().items()}
        states, sizes = [], []
        for c in fl.RandomSchedule().cohort(population, t).client_ids:
            model.load_state_dict(start)
            model.train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            data = module.train_set.take(parts[c])
            order = generator(0, "order", t, c)
            torch.manual_seed(derive_seed(0, "client", t, c))
            for _ in range(2):
                for x, y in epoch_batches(data, 8, order):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            states.append({k: v.clone() for k, v in model.state_dict().items()})
            sizes.append(len(parts[c]))
        share = torch.tensor(sizes) / sum(sizes)
        parameters = dict(model.named_parameters())
        new = dict(start)  # counters stay as they were
        for name, value in start.items():
            stacked = torch.stack([s[name] for s in states])
            if name in parameters:
                new[name] = torch.einsum("n,n...->...", share, stacked)
            elif value.is_floating_point():
                new[name] = stacked.mean(dim=0)
        model.load_state_dict(new)
    return weights(client)


def test_three_rounds_are_federated_averaging() -> None:
    client = small_client()
    fit(client, rounds=3)
    torch.testing.assert_close(
        weights(client), federated_averaging_by_hand(3), rtol=1e-4, atol=1e-6
    )


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    ends = []
    for seed in (0, 0, 1):
        client = small_client(fl.FLWBC())
        torch.manual_seed(len(ends))  # the global generator plays no part
        fit(client, federation={"seed": seed})
        ends.append(weights(client))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


class Watch(Callback):
    """Records what every hook sees."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.seen: dict[str, list[torch.Tensor]] = {"start": [], "end": [], "round": []}
        self.clients: list[int] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.seen["round"].append(weights(pl_module))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen["start"].append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen["end"].append(weights(pl_module))
        self.clients.append(batch.client_id)

    def on_validation_start(self, trainer, pl_module) -> None:
        self.events.append(f"validate after step {trainer.global_step}")


def test_hooks_see_the_global_weights_rounds_as_epochs_and_clients_as_batches() -> None:
    watch, client = Watch(), small_client()
    trainer = fit(client, callbacks=[watch], rounds=2)
    assert trainer.current_epoch == trainer.global_step == 2
    assert watch.events == ["validate after step 1", "validate after step 2"]
    population = trainer.federation.population
    cohorts = [fl.RandomSchedule().cohort(population, t).client_ids for t in (0, 1)]
    assert watch.clients == [*cohorts[0], *cohorts[1]]
    for t in (0, 1):
        for name in ("start", "end"):
            for seen in watch.seen[name][7 * t : 7 * t + 7]:
                assert torch.equal(seen, watch.seen["round"][t])
    assert not torch.equal(watch.seen["round"][1], weights(client))


def test_the_logged_names_are_the_documented_ones() -> None:
    trainer = fit(
        small_client(fl.LeadFL()),
        attack=fl.PatternBackdoor(),
        aggregator=fl.MultiKrum(f=2),
        schedule=fl.FixedSchedule(3),
    )
    metrics = {k: v.item() for k, v in trainer.callback_metrics.items()}
    assert set(metrics) == {
        "val/clean_accuracy", "val/backdoor_accuracy", "val/backdoor_accuracy_all",
        "val/backdoor_accuracy_avg", "round/malicious_sampled", "round/malicious_selected",
        "round/selected", "round/rejected", "round/update_norm", "train/loss",
        "train/regulariser",
    }  # fmt: skip
    assert metrics["round/malicious_sampled"] == 3
    assert metrics["round/malicious_selected"] <= 3
    assert metrics["train/regulariser"] > 0


@pytest.mark.parametrize("defense", [fl.NoDefense(), fl.LeadFL(), fl.FLWBC(), fl.LDP()])
def test_a_clients_update_does_not_depend_on_who_trained_before(defense) -> None:
    class Backwards(fl.RandomSchedule):
        def sample(self, *args) -> list[int]:
            return super().sample(*args)[::-1]

    updates = []
    for schedule in (fl.RandomSchedule(), Backwards()):
        sent = Sent()
        fit(
            small_client(defense, momentum=0.5), schedule=schedule, rounds=1,
            attack=fl.PatternBackdoor(), callbacks=[sent],
        )  # fmt: skip
        updates.append(sent.rounds[0])
    assert torch.equal(updates[0], updates[1].flip(0))


def test_local_steps_stop_where_they_say() -> None:
    one_epoch, counted = small_client(), small_client()
    fit(one_epoch, rounds=1, federation={"local_epochs": 1})  # 20 images each: 3 batches of 8
    fit(counted, rounds=1, federation={"local_epochs": None, "local_steps": 3})
    assert torch.equal(weights(one_epoch), weights(counted))
    fit(counted, rounds=1, federation={"local_epochs": None, "local_steps": 4})
    assert not torch.equal(weights(one_epoch), weights(counted))


def test_attackers_with_the_clients_defense_send_other_updates() -> None:
    ends = []
    for defended in (False, True):
        client = small_client(fl.LeadFL())
        fit(client, attack=fl.PatternBackdoor(), federation={"defended_attackers": defended})
        ends.append(weights(client))
    assert not torch.equal(*ends)


def test_the_counter_gives_attackers_away_only_if_the_state_is_measured() -> None:
    """Two forward passes a step count twice: the released code's Krum sees it, ours does not."""
    selected = {}
    for measure in ("params", "state"):
        trainer = fit(
            small_client(),
            aggregator=fl.MultiKrum(f=2, m=3),
            attack=fl.PatternBackdoor(balance="fixed", backdoor_weight=1e-6),  # hardly an attack
            schedule=fl.FixedSchedule(2),
            rounds=6,
            federation={"distance_space": measure},
            callbacks=[report := fl.RunReport()],
        )
        assert trainer.current_epoch == 6
        selected[measure] = sum(row["round/malicious_selected"] for row in report.rows)
    assert selected["state"] == 0
    assert selected["params"] > 0


def test_momentum_is_carried_from_round_to_round_only_if_asked() -> None:
    ends = []
    for carry in (False, True):
        client = small_client(momentum=0.9)
        everybody = {"num_clients": 7, "num_malicious": 0, "carry_momentum": carry}
        trainer = fit(client, rounds=2, federation=everybody)
        assert set(trainer.fit_loop.clients.momenta) == (set(range(7)) if carry else set())
        ends.append(weights(client))
    assert not torch.equal(*ends)


def test_rounds_without_a_single_good_update_keep_the_old_model_and_then_stop_the_run() -> None:
    client = small_client()
    client.lr = 1e6
    start = weights(client)
    report = fl.RunReport()
    with (
        pytest.warns(UserWarning, match="round 1 keeps the old model: FedAvg needs n >= 1"),
        pytest.raises(
            RuntimeError,
            match=r"no well-formed update in round 2: .* n = 0, after 7 of 7 were",
        ),
    ):
        fit(client, rounds=5, callbacks=[report], federation={"max_failures": 2})
    assert torch.equal(weights(client), start)
    assert [row["round/rejected"] for row in report.rows] == [7, 7]


@pytest.mark.parametrize("rule", [fl.SparseFed(k=5), fl.CRFL(), fl.FoolsGold()])
def test_trainers_with_the_same_rule_and_attack_may_fit_in_turns(rule) -> None:
    attack = fl.A3FL(steps=2, unlearning_steps=1)

    def fit_on(trainer: fl.FederatedTrainer, client: fl.FederatedClient, rounds: int) -> None:
        trainer.fit_loop.max_epochs = rounds
        trainer.fit(client, datamodule=SmallImages(batch_size=8))

    alone, first, second = (
        (small_trainer(rule, attack, fl.FixedSchedule(3)), small_client()) for _ in range(3)
    )
    fit_on(*alone, 2)
    for rounds in (1, 2):
        fit_on(*first, rounds)
        fit_on(*second, rounds)
    for _, client in (first, second):
        assert torch.equal(weights(client), weights(alone[1]))


class Fails(fl.NoDefense):
    """Raises in the local training of clients whose first noise number is small."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.calls = 0

    def finish(self, delta: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.calls += 1  # the first one is a trial before the round
        if torch.rand((), generator=generator) < self.share and self.calls > 1:
            raise RuntimeError("out of battery")
        return delta


def test_a_client_that_raises_is_left_out_of_its_round_by_name() -> None:
    client, report = small_client(Fails(0.4), momentum=0.5), fl.RunReport()
    with pytest.warns(UserWarning, match=r"client \d+ in round \d raised .*out of battery") as seen:
        trainer = fit(
            client,
            callbacks=[report],
            federation={"carry_momentum": True, "num_malicious": 0},
        )
    named = [w for w in seen if "out of battery" in str(w.message)]
    failed = [row.get("round/failed", 0) for row in report.rows]
    assert sum(failed) == len(named) > 0
    assert max(failed) < 7
    assert all(row["round/rejected"] == 0 for row in report.rows)
    assert all(m.numel() == 418 and m.any() for m in trainer.fit_loop.clients.momenta.values())
    assert not torch.equal(weights(client), weights(small_client()))


def test_a_client_that_raises_leaves_the_random_state_as_it_was() -> None:
    class Stuck(fl.NoDefense):
        def after_step(self, step, state):
            if step.num_steps == 6:  # not where the defense is tried before the round
                raise RuntimeError("stuck")

    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="stuck"), pytest.raises(fl.ConfigError, match="all 7"):
        fit(small_client(Stuck()), rounds=1, federation={"num_malicious": 0})
    assert torch.initial_seed() == 5


def test_a_client_that_diverged_does_not_keep_what_made_it_diverge() -> None:
    client = small_client(momentum=0.9)
    client.lr = 1e6
    trainer = small_trainer(rounds=1, federation={"carry_momentum": True})
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    assert all(bool(m.isfinite().all()) for m in trainer.fit_loop.clients.momenta.values())


@pytest.mark.parametrize("kind", ["honest", "malicious"])
def test_a_method_that_fails_for_all_its_clients_stops_the_run_in_the_first_round(kind) -> None:
    class Unable(fl.Attack):
        calls = 0

        def tasks(self, x, y):
            self.calls += 1  # the first one is a trial before the round
            if self.calls > 1:
                raise RuntimeError("out of battery")
            return super().tasks(x, y)

    client = small_client(Fails(1.0) if kind == "honest" else None)
    attack = Unable() if kind == "malicious" else None
    with (
        pytest.warns(UserWarning, match="out of battery"),
        pytest.raises(fl.ConfigError, match=rf"all \d {kind} clients failed .*battery.* line \d+"),
    ):
        fit(client, attack=attack, schedule=fl.FixedSchedule(3))
    assert torch.equal(weights(client), weights(small_client()))


class Broken(fl.FedAvg):
    """A rule whose second aggregate is not finite, though the updates are."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def combine(self, updates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().combine(updates, weights) / (self.calls == 1)


def test_a_non_finite_aggregate_stops_the_run_and_keeps_the_old_model() -> None:
    client, after_one_round = small_client(), small_client()
    fit(after_one_round, rounds=1)
    with pytest.raises(FloatingPointError, match="round 1: the update that Broken made"):
        fit(client, aggregator=Broken())
    assert torch.equal(weights(client), weights(after_one_round))


def test_fast_dev_run_is_one_round() -> None:
    client = small_client()
    trainer = small_trainer(fast_dev_run=True)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    assert trainer.global_step == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_malicious": 13},
            "must be <= num_clients = 12, got num_malicious = 13",
        ),
        ({"clients_per_round": 13}, "clients_per_round must be <= num_clients = 12"),
        ({"local_steps": 5}, "either local_epochs or local_steps"),
        ({"local_epochs": 0}, "local_epochs must be >= 1, got local_epochs = 0"),
        ({"clients_per_round": 0}, "clients_per_round must be >= 1"),
    ],
)
def test_a_federation_that_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        small_trainer(federation=settings)


def test_a_rule_that_needs_more_clients_is_refused_before_training() -> None:
    with pytest.raises(fl.ConfigError, match=r"Bulyan needs n >= 4f \+ 3 = 11 updates for f = 2"):
        small_trainer(aggregator=fl.Bulyan(f=2))


def test_plain_ddp_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="would average the gradients of different clients"):
        small_trainer(strategy="ddp", devices=2)


def test_batch_statistics_over_several_clients_are_refused() -> None:
    client = small_client()
    client.model[1] = torch.nn.SyncBatchNorm(4)
    with pytest.raises(fl.ConfigError, match="must have no SyncBatchNorm, which would mix the"):
        fit(client)


def test_a_trigger_larger_than_the_image_is_refused() -> None:
    class Slim(TinyImages):
        image_shape = (1, 4, 4)

    with pytest.raises(fl.ConfigError, match="pattern must fit the image, 4 x 4 pixels"):
        small_trainer(attack=fl.PatternBackdoor()).fit(small_client(), datamodule=Slim())


def test_evaluating_every_second_round_averages_those_rounds() -> None:
    trainer = small_trainer(
        attack=fl.PatternBackdoor(), rounds=5, check_val_every_n_epoch=2,
        callbacks=[report := fl.RunReport()],
    )  # fmt: skip
    trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
    evaluated = [r["val/backdoor_accuracy"] for r in report.rows if "val/backdoor_accuracy" in r]
    assert [r["round"] for r in report.rows if "val/clean_accuracy" in r] == [1, 3]
    numbers = summary(report.rows, majority=3.5)
    average = trainer.callback_metrics["val/backdoor_accuracy_avg"].item()
    assert average == pytest.approx(sum(evaluated) / 2)
    assert numbers["backdoor average"] == pytest.approx(average)
    assert numbers["main accuracy"] == report.rows[3]["val/clean_accuracy"]


def test_frozen_parameters_stay_as_they_are() -> None:
    client = small_client()
    frozen = client.model[0].requires_grad_(False)
    before = frozen.weight.clone()
    trainer = fit(client)
    assert torch.equal(frozen.weight, before)
    assert trainer.fit_loop.clients.vector.d == 418 - 40


class NonFiniteBuffers(fl.NoDefense):
    """A client whose running statistics overflow while its update stays finite."""

    def after_step(self, step: fl.LocalStep, state: object) -> None:
        if step.num_steps == 6:  # not where the defense is tried before the round
            self.buffer.fill_(float("nan"))


def test_non_finite_buffers_do_not_reach_the_model() -> None:
    client = small_client(NonFiniteBuffers())
    client.defense.buffer = client.model[1].running_var
    start = weights(client)
    with pytest.warns(
        UserWarning, match=r"update of client \d+ in round 0 is rejected: it has 4 entries"
    ):
        fit(client, rounds=1, schedule=fl.FixedSchedule(3))
    assert bool(weights(client).isfinite().all())
    assert not torch.equal(weights(client), start)  # the malicious clients' are well-formed


@pytest.mark.parametrize(
    "defense", [fl.LeadFL(), fl.LeadFL(formulation="released"), fl.FLWBC()], ids=lambda d: repr(d)
)
def test_a_parameter_without_a_gradient_is_no_obstacle(defense: fl.ClientDefense) -> None:
    client = small_client(defense, momentum=0.1)
    client.model.register_parameter("unused_weight", torch.nn.Parameter(torch.ones(3)))
    fit(client, attack=fl.PatternBackdoor(), federation={"carry_momentum": True})


class OwnMomentum(fl.FederatedClient):
    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=0.5)


@pytest.mark.parametrize(("momentum", "carry"), [(0.5, True), (0.0, True), (0.5, False)])
def test_the_momentum_that_is_carried_is_the_optimizers(momentum: float, carry: bool) -> None:
    for kind in (fl.FederatedClient, OwnMomentum):
        client = kind(small_client().model, momentum=momentum if kind is fl.FederatedClient else 0)
        trainer = fit(client, rounds=1, federation={"carry_momentum": carry})
        clients = trainer.fit_loop.clients
        sizes = {len(m) for m in clients.momenta.values()} or {0}
        assert sizes == {clients.momentum_size}
        expected = (momentum and kind is fl.FederatedClient) or kind is OwnMomentum
        assert clients.momentum_size == (clients.vector.d if carry and expected else 0)


class Forward(fl.FederatedClient):
    def forward(self, x):
        return self.model((x - 0.5) / 0.3)


def test_a_client_whose_forward_attackers_would_not_have_is_refused() -> None:
    message = r"model = Forward must leave forward\(\) as it is, because attackers"
    with pytest.raises(fl.ConfigError, match=message):
        fit(Forward(small_client().model), attack=fl.PatternBackdoor())
    with pytest.raises(fl.ConfigError, match=message):
        fit(Forward(small_client().model), aggregator=fl.FLTrust(root_size=20))
    fit(Forward(small_client().model), rounds=1)
    nobody = {"num_malicious": 0}  # a control run, which measures the trigger
    fit(Forward(small_client().model), rounds=1, attack=fl.PatternBackdoor(), federation=nobody)


def test_the_mean_loss_of_many_steps_is_exact_in_bfloat16() -> None:
    client = small_client()
    client.lr = 1e-9
    report = fl.RunReport()
    settings = {"local_epochs": 200, "num_malicious": 0, "clients_per_round": 1}
    fit(client, callbacks=[report], rounds=1, precision="bf16-true", federation=settings)
    assert report.rows[0]["train/loss"] == pytest.approx(
        2.3, rel=0.1
    )  # of 600 steps: a sum of 1400


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_other_precisions_run(precision: str) -> None:
    client = small_client(fl.LeadFL())
    fit(client, attack=fl.PatternBackdoor(), precision=precision, rounds=1)
    assert bool(weights(client).isfinite().all())


def test_mixed_precision_uses_the_weights_of_every_step() -> None:
    start, moved = weights(small_client()), {}
    for precision in ("32-true", "bf16-mixed"):
        client = small_client()
        fit(client, precision=precision, rounds=1, federation={"local_epochs": 8})
        moved[precision] = weights(client) - start
    exact, mixed = moved["32-true"], moved["bf16-mixed"]
    assert float((mixed - exact).norm()) < 0.1 * float(exact.norm())


def test_a_rule_with_a_forward_of_its_own_is_refused() -> None:
    class Forward(fl.FedAvg):
        def forward(self, updates, weights=None):
            return updates[0]

    with pytest.raises(fl.ConfigError, match="Forward must define select"):
        small_trainer(aggregator=Forward())


def test_a_client_that_went_through_a_federation_logs_its_own_loss_afterwards() -> None:
    client = small_client()
    fit(client, rounds=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(client, datamodule=SmallImages(batch_size=16))
    assert "round/update_norm" not in trainer.callback_metrics
    assert "train/loss" in trainer.callback_metrics


def test_choices_are_checked_from_python_too() -> None:
    with pytest.raises(fl.ConfigError, match="norm must be one of l2, squared, got norm = L2"):
        fl.LeadFL(norm="L2")
    with pytest.raises(fl.ConfigError, match="balance must be one of mgda, fixed"):
        fl.PatternBackdoor(balance="foo")
    with pytest.raises(fl.ConfigError, match="distance_space must be one of params, state"):
        small_trainer(federation={"distance_space": "everything"})


def test_a_loader_of_anothers_make_is_evaluated_with_batch_statistics_too() -> None:
    class OwnLoader(SmallImages):
        def val_dataloader(self):  # type: ignore[override]
            images, labels = self.test_set
            return DataLoader(TensorDataset(as_float(images), labels), batch_size=20)

    ends = []
    for module in (OwnLoader(batch_size=8), SmallImages(batch_size=8, eval_batch_size=20)):
        client = small_client(evaluation_mode="train")
        small_trainer(attack=fl.PatternBackdoor(), rounds=2).fit(client, datamodule=module)
        ends.append(client.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_layer_that_was_frozen_before_the_fit_stays_so() -> None:
    client = small_client()
    client.model[1].eval()
    fit(client, rounds=2)
    assert client.model[0].training
    assert not client.model[1].training
    assert int(client.model[1].num_batches_tracked) == 0


class Hearing(fl.FederatedClient):
    """A client with a hook of its own within local steps."""

    heard = 0

    def on_after_backward(self) -> None:
        self.heard += 1


def test_who_listens_to_local_steps_hears_of_each_and_changes_nothing() -> None:
    calls: list[str] = []
    listener = LambdaCallback(
        on_after_backward=lambda *_: calls.append("backward"),
        on_before_optimizer_step=lambda *_: calls.append("step"),
    )
    plain, listened, own = small_client(), small_client(), small_client()
    own.__class__ = Hearing
    honest = {"num_malicious": 0}  # attackers have a backward pass of their own
    fit(plain, rounds=2, federation=honest)
    fit(listened, callbacks=[listener], rounds=2, federation=honest)
    fit(own, rounds=2, federation=honest)
    steps = 2 * 7 * 2 * 3  # rounds, clients, epochs, batches
    assert calls.count("step") == calls.count("backward") == own.heard == steps
    assert torch.equal(weights(plain), weights(listened))
    assert torch.equal(weights(plain), weights(own))


class OwnStep(SingleDeviceStrategy):
    def optimizer_step(self, *args, **kwargs):
        return super().optimizer_step(*args, **kwargs)


@pytest.mark.parametrize(
    ("settings", "listener"),
    [
        ({}, None),
        ({"strategy": OwnStep("cpu")}, "OwnStep overrides optimizer_step()"),
        ({"precision": "64-true"}, None),
        ({"precision": "bf16-mixed"}, None),
        ({"profiler": "simple"}, "SimpleProfiler times every step"),
        (
            {"callbacks": [LambdaCallback(on_before_backward=print)]},
            "LambdaCallback overrides on_before_backward()",
        ),
    ],
)
def test_who_listens_to_local_steps_is_known_by_name(settings, listener: str | None) -> None:
    client = small_client()
    client.trainer = small_trainer(**settings)
    assert step_listener(client) == listener


@pytest.mark.parametrize(
    "hook", ["manual_backward", "backward", "on_before_optimizer_step", "training_step"]
)
def test_a_client_with_a_hook_of_its_own_is_a_listener(hook: str) -> None:
    client = type("Own", (fl.FederatedClient,), {hook: lambda *_: None})(torch.nn.Linear(1, 1))
    client.trainer = small_trainer()
    assert step_listener(client) == f"Own overrides {hook}()"


class Lookahead(torch.optim.SGD):
    """An optimizer around another one, as far as its attribute goes."""

    def __init__(self, params, **kwargs) -> None:
        super().__init__(params, **kwargs)
        self.optimizer = torch.optim.SGD(self.param_groups[0]["params"], **kwargs)


@pytest.mark.parametrize("kind", [fl.FederatedClient, Hearing])
def test_a_defense_steps_with_the_optimizer_that_the_client_configured(kind: type) -> None:
    seen = set()

    class Looking(fl.NoDefense):
        def after_step(self, step, state):
            if hasattr(step.optimizer_step, "__self__"):  # not where the defense is tried
                seen.add(type(step.optimizer_step.__self__))

    class Own(kind):
        def configure_optimizers(self):
            return Lookahead(self.model.parameters(), lr=self.lr)

    client = small_client(Looking())
    client.__class__, client.heard = Own, 0
    fit(client, rounds=1)
    assert seen == {Lookahead}


@pytest.mark.parametrize("rule", [fl.SparseFed(k=5), fl.CRFL(), fl.FoolsGold()])
def test_a_rule_in_another_federation_starts_without_its_memory(rule) -> None:
    ends = []
    for _ in range(2):
        client = small_client()
        fit(client, aggregator=rule, rounds=2)
        ends.append(weights(client))
    assert torch.equal(*ends)
    client = small_client()
    fit(client, aggregator=fl.ServerDecay(rule, half_life=math.inf), rounds=2)
    assert torch.equal(weights(client), ends[0])
    small = fl.FederatedClient(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    fit(small, aggregator=rule, rounds=1)


def test_kept_momentum_keeps_nothing_else() -> None:
    rows, scalar = torch.ones(10, 100), torch.zeros(())
    update = ClientUpdate(3, scalar, scalar, 1, scalar, scalar, momentum=rows[2, :7])
    clients = SimpleNamespace(momenta={})
    Clients.keep_momentum(clients, [update])
    assert clients.momenta[3].untyped_storage().nbytes() == 7 * 4


def test_rules_that_sort_run_in_half_precision() -> None:
    fit(small_client(), aggregator=fl.Median(), precision="bf16-true", rounds=1)
