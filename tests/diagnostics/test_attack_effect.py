"""The attack effect: the twin is a run by itself, and what is measured is what is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tiny import SmallImages, Tied, small_client, small_trainer, weights
from torch import nn

import leadfl_pl as fl
from leadfl_pl.core.vector import ModelVector

BACKDOOR = fl.PatternBackdoor()
BURST = fl.BurstySchedule(period=5, burst=1, num_malicious=4)
Rows = list[dict[str, float]]


def fit(
    effect: fl.AttackEffect | None = None,
    attack: fl.Attack | None = BACKDOOR,
    rule: fl.Aggregator | None = None,
    client: fl.FederatedClient | None = None,
    callbacks: tuple[Callback, ...] = (),
    ckpt_path: str | None = None,
    schedule: fl.Schedule = BURST,
    **kwargs: Any,
) -> tuple[fl.FederatedTrainer, fl.FederatedClient, Rows]:
    """The Trainer, the client and the rows of a run, on the attack effect if it is given."""
    report = fl.RunReport()
    trainer = small_trainer(
        rule, attack, schedule, [*([effect] if effect else []), report, *callbacks], **kwargs
    )
    client = client or small_client()
    trainer.fit(client, datamodule=SmallImages(batch_size=8), ckpt_path=ckpt_path)
    return trainer, client, report.rows


def measured(row: dict[str, float], kind: str) -> dict[str, float]:
    """What a row has of one kind of measurement, by layer."""
    return {k.rpartition("/")[2]: v for k, v in row.items() if f"attack_effect/{kind}/" in k}


def no_dropout(**settings: Any) -> fl.FederatedClient:
    """A client whose network runs vectorised."""
    client = small_client(**settings)
    client.model[3] = nn.Identity()
    return client


# ---------------------------------------------------------------------- the twin

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of a client, of a federation
    "plain": ({}, {}),
    "stateful": (
        {"defense": fl.LeadFL(), "momentum": 0.5},
        {"rule": lambda: fl.SparseFed(k=40), "carry_momentum": True},
    ),
    "initial": (
        {"defense": fl.Contraction(half_life=1.0, anchor="initial")},
        {"rule": lambda: fl.FLTrust(root_size=20)},
    ),
    "state": ({"defense": fl.FLWBC()}, {"rule": fl.MultiKrum, "distance_space": "state"}),
    "vectorised": ({"momentum": 0.5}, {"execution": "vectorised", "carry_momentum": True}),
}


def test_a_later_fit_measures_the_network_wherever_it_is_by_then() -> None:
    """A Trainer leaves a GPU after a fit: the network's tensors are others in the next one."""
    _, _, expected = fit(fl.AttackEffect(), rounds=4)
    trainer, client, rows = fit(fl.AttackEffect(), rounds=2)
    for tensor in (*client.parameters(), *client.buffers()):
        tensor.data = tensor.data.clone()
    trainer.fit_loop.max_epochs = 4
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    report = next(c for c in trainer.callbacks if isinstance(c, fl.RunReport))
    assert report.rows[:2] == rows[:2] == expected[:2]
    assert report.rows == expected


def test_a_used_trainer_refuses_a_checkpoint_without_the_twin_and_keeps_its_own(tmp_path) -> None:
    saving = {"enable_checkpointing": True, "default_root_dir": str(tmp_path / "other")}
    fit(rounds=1, **saving)
    trainer, client, _ = fit(fl.AttackEffect(), rounds=2)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))  # no round is left
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    *_, rows = fit(fl.AttackEffect(), rounds=3, ckpt_path=tmp_path / "kept.ckpt")
    assert len(rows) == 3
    last = tmp_path / "other/checkpoints/version_0/last.ckpt"
    with pytest.raises(fl.ConfigError, match="AttackEffect must be there from round 0 on"):
        trainer.fit(client, datamodule=SmallImages(batch_size=8), ckpt_path=last)


def test_a_tied_weight_is_measured_once() -> None:
    effect = fl.AttackEffect()
    _, client, rows = fit(effect, client=fl.FederatedClient(Tied()))
    assert len(effect.delta) == sum(p.numel() for p in client.model.parameters())
    of_layers = list(measured(rows[-1], "norm").values())
    assert math.hypot(*of_layers) == pytest.approx(rows[-1]["attack_effect/norm"])


@pytest.mark.parametrize("name", RUNS)
def test_the_twin_is_a_run_without_the_attack_and_changes_nothing_of_the_run(name: str) -> None:
    of_client, settings = RUNS[name]
    settings = dict(settings)
    rule = settings.pop("rule", fl.FedAvg)

    def run(effect: fl.AttackEffect | None, attack: fl.Attack | None) -> Any:
        return fit(effect, attack, rule(), no_dropout(**of_client), federation=settings)

    effect = fl.AttackEffect()
    _, attacked, rows = run(effect, BACKDOOR)
    _, alone, rows_alone = run(None, BACKDOOR)
    trainer, clean, _ = run(None, None)

    assert torch.equal(weights(attacked), weights(alone))
    of_run = [{k: v for k, v in row.items() if "attack_effect" not in k} for row in rows]
    assert of_run == rows_alone

    vector = ModelVector(clean.model, trainer.federation.distance_space)
    expected = vector.snapshot()
    assert effect.clean is not None
    assert torch.equal(effect.clean.theta, expected.theta)
    assert torch.equal(effect.clean.buffers, expected.buffers)
    assert all(map(torch.equal, effect.clean.kept, expected.kept))
    parameters = [torch.cat([p.flatten() for p in c.model.parameters()]) for c in (attacked, clean)]
    assert effect.delta is not None
    assert torch.equal(effect.delta, parameters[0] - parameters[1])
    assert effect.delta.any()


@pytest.mark.parametrize(
    "federation", [{"num_malicious": 0}, {"execution": "vectorised", "num_malicious": 0}]
)
def test_without_an_attack_at_work_the_effect_is_exactly_zero(federation: dict) -> None:
    effect = fl.AttackEffect()
    rule, schedule = fl.SparseFed(k=40), fl.RandomSchedule()
    settings = {"schedule": schedule, "federation": federation}
    _, client, rows = fit(effect, rule=rule, client=no_dropout(defense=fl.FLWBC()), **settings)
    assert effect.delta is not None
    assert not effect.delta.any()
    assert {v for row in rows for k, v in row.items() if k.startswith("attack_effect/")} == {0.0}
    assert not torch.equal(weights(client), weights(no_dropout()))


def test_before_the_first_attacked_round_the_effect_is_exactly_zero() -> None:
    schedule = fl.ForcedRounds(fl.FixedSchedule(0), rounds=[2], num_malicious=4)
    _, _, rows = fit(fl.AttackEffect(), schedule=schedule, rounds=4)
    norms = [row["attack_effect/norm"] for row in rows]
    assert norms[:2] == [0.0, 0.0]
    assert min(norms[2:]) > 0
    assert [bool(measured(row, "contraction")) for row in rows] == [False, False, False, True]


class Unreliable(fl.NoDefense):
    """Some clients raise at the end of their training, some others send far too much."""

    def __init__(self) -> None:
        self.calls = 0

    def finish(self, delta: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.calls += 1
        draw = float(torch.rand((), generator=generator)) if self.calls > 1 else 1.0  # a trial
        if draw < 0.2:
            raise RuntimeError("out of battery")
        return delta * 1e30 if draw < 0.4 else delta


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_twin_leaves_out_what_its_server_leaves_out() -> None:
    class Half(fl.FedAvg):
        def check(self, n: int) -> None:
            if n < 5:
                raise fl.ConfigError("Half needs n >= 5")

    def run(effect: fl.AttackEffect | None, attack: fl.Attack | None) -> Any:
        settings = {"federation": {"max_failures": 10}, "rounds": 6}
        return fit(effect, attack, Half(), small_client(Unreliable()), **settings)

    effect = fl.AttackEffect()
    run(effect, BACKDOOR)
    alone, clean, rows = run(None, None)
    failed = [row for row in rows if row["round/selected"] == 0]
    assert 0 < len(failed) < len(rows)
    assert sum(row.get("round/failed", 0) for row in rows) > 0
    assert effect.clean is not None
    assert torch.equal(effect.clean.theta, ModelVector(clean.model).read())
    assert effect.state_dict()["twin"]["server"]["failures"] == alone.fit_loop.server.failures


class Watch(Callback):
    """Keeps the model as every hook of a round sees it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.seen.append(("round starts", weights(pl_module)))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen.append((f"{batch} starts", weights(pl_module)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append((f"{batch} ends", weights(pl_module)))

    def on_validation_start(self, trainer, pl_module) -> None:
        self.seen.append(("validation", weights(pl_module)))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.seen.append(("round ends", weights(pl_module)))


def test_the_hooks_see_the_run_and_nothing_of_the_twin() -> None:
    alone, beside = Watch(), Watch()
    fit(callbacks=(alone,))
    fit(fl.AttackEffect(), callbacks=(beside,))
    assert [name for name, _ in alone.seen] == [name for name, _ in beside.seen]
    for (_, expected), (_, seen) in zip(alone.seen, beside.seen, strict=True):
        assert torch.equal(expected, seen)


class Idle(fl.Attack):
    """The malicious clients stay where they are."""

    def balance(self, losses: torch.Tensor, gradients: list[list[torch.Tensor]]) -> torch.Tensor:
        return torch.zeros_like(losses)


@pytest.mark.filterwarnings("ignore:the update of:UserWarning")
def test_a_twin_that_fails_once_too_often_says_that_it_was_the_twin() -> None:
    client = small_client()
    client.lr = 1e6
    start = ModelVector(client.model).read()
    everybody = {"num_clients": 7, "num_malicious": 7, "max_failures": 0}
    message = "AttackEffect, the run without the attack: no well-formed update in round 0: "
    with pytest.raises(RuntimeError, match=message):
        fit(fl.AttackEffect(), Idle(), client=client, schedule=fl.FixedSchedule(7),
            federation=everybody)  # fmt: skip
    assert torch.equal(ModelVector(client.model).read(), start)  # the run's, which did not move


# ---------------------------------------------------------------------- what is measured


class Push(fl.Attack):
    """The malicious clients send 1 more for every parameter."""

    def corrupt(
        self, updates: torch.Tensor, malicious: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return updates + malicious[:, None]


def linear() -> fl.FederatedClient:
    """A linear client that barely learns and halves its distance from zero in two rounds."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return fl.FederatedClient(model, fl.Contraction(half_life=2.0, parameters="all"), lr=1e-6)


def test_a_linear_model_contracts_as_it_does_by_hand() -> None:
    effect = fl.AttackEffect()
    _, _, rows = fit(effect, Push(), client=linear(), rounds=4)
    first = 4 / 7 * 650**0.5  # 4 of 7 clients of equal size push all 650 parameters by 1
    for age, row in enumerate(rows):
        assert row["attack_effect/norm"] == pytest.approx(first * 2 ** (-age / 2), rel=1e-4)
    assert "attack_effect/contraction" not in rows[0]
    assert "attack_effect/half_life" not in rows[0]
    for row in rows[1:]:
        assert row["attack_effect/contraction"] == pytest.approx(2**-0.5, rel=1e-4)
        assert row["attack_effect/half_life"] == pytest.approx(2, rel=1e-3)
    assert effect.delta is not None
    assert bool((effect.delta > 0).all())  # the attacked model less the clean one


def test_the_measurements_are_those_of_two_runs_by_themselves() -> None:
    class Models(Callback):
        def __init__(self) -> None:
            self.models: list[torch.Tensor] = []

        def on_train_epoch_end(self, trainer, pl_module) -> None:
            self.models.append(ModelVector(pl_module.model).read())

    attacked, clean = Models(), Models()
    settings = {"rounds": 6, "schedule": fl.BurstySchedule(4, 1, 4)}
    defended = {"defense": fl.Contraction(half_life=0.5, parameters="all")}
    _, _, rows = fit(
        fl.AttackEffect(), client=small_client(**defended), callbacks=(attacked,), **settings
    )
    fit(attack=None, client=small_client(**defended), callbacks=(clean,), **settings)
    deltas = [a - c for a, c in zip(attacked.models, clean.models, strict=True)]
    norms = [float(delta.double().norm()) for delta in deltas]
    for t, row in enumerate(rows):
        size = float(attacked.models[t].norm())
        assert row["attack_effect/norm"] == pytest.approx(norms[t])
        assert row["attack_effect/relative"] == pytest.approx(norms[t] / size)
        by_layer = {
            "0": deltas[t][:40], "1": deltas[t][40:48], "5": deltas[t][48:]
        }  # fmt: skip
        expected = {layer: float(part.norm()) for layer, part in by_layer.items()}
        assert measured(row, "norm") == pytest.approx(expected)
        if t in (0, 4):
            assert not measured(row, "contraction")
            continue
        assert row["attack_effect/contraction"] == pytest.approx(norms[t] / norms[t - 1])
        before = measured(rows[t - 1], "norm")
        ratios = {layer: norm / before[layer] for layer, norm in expected.items()}
        assert measured(row, "contraction") == pytest.approx(ratios, rel=1e-5)
    slope, _ = np.polyfit(range(4), np.log2(norms[:4]), 1)
    assert rows[3]["attack_effect/half_life"] == pytest.approx(-1 / slope)


def test_the_squares_of_the_layers_add_up_to_the_whole() -> None:
    _, _, rows = fit(fl.AttackEffect())
    for row in rows:
        squares = [norm**2 for norm in measured(row, "norm").values()]
        assert sum(squares) == pytest.approx(row["attack_effect/norm"] ** 2)


def test_a_callback_may_wait_for_the_effect() -> None:
    stop = EarlyStopping("attack_effect/norm", patience=10)
    fit(fl.AttackEffect(), callbacks=(stop,))
    assert stop.best_score > 0


# ---------------------------------------------------------------------- going on

STATEFUL = {"federation": {"carry_momentum": True}, "rounds": 5}
SAVING = {"enable_checkpointing": True, "default_root_dir": "run"}


def stateful(effect: fl.AttackEffect | None, **settings: Any) -> Rows:
    client = small_client(fl.LeadFL(), momentum=0.5)
    schedule = fl.BurstySchedule(period=3, burst=1, num_malicious=4)
    settings = STATEFUL | {"schedule": schedule} | settings
    return fit(effect, rule=fl.SparseFed(k=40), client=client, **settings)[2]


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_run_goes_on_with_its_twin_to_the_same_bits(rounds: int) -> None:
    whole, before, after = fl.AttackEffect(), fl.AttackEffect(), fl.AttackEffect()
    expected = stateful(whole)
    stateful(before, **SAVING, rounds=rounds)
    assert stateful(after, **SAVING, ckpt_path="last") == expected
    assert torch.equal(after.delta, whole.delta)
    for part, other in zip(after.clean[:2], whole.clean[:2], strict=True):
        assert torch.equal(part, other)


@pytest.mark.parametrize("step", [1, 4])
def test_a_checkpoint_of_an_evaluation_goes_on_with_the_twins_round(step: int) -> None:
    best = ModelCheckpoint(
        dirpath="best", filename="{step}", monitor="val/clean_accuracy", save_top_k=-1,
        save_on_train_epoch_end=False,
    )  # fmt: skip
    whole, after = fl.AttackEffect(), fl.AttackEffect()
    expected = stateful(whole, callbacks=(best,), enable_checkpointing=True)
    assert stateful(after, ckpt_path=f"best/step={step}.ckpt") == expected
    assert torch.equal(after.delta, whole.delta)


def test_a_used_callback_starts_anew_with_another_trainer() -> None:
    effect = fl.AttackEffect()
    assert stateful(effect) == stateful(effect)


def test_a_run_without_the_twin_cannot_go_on_with_it() -> None:
    stateful(None, **SAVING, rounds=1)
    message = r"^AttackEffect must be there from round 0 on: ckpt_path must be .*, got ckpt_path ="
    with pytest.raises(fl.ConfigError, match=message):
        stateful(fl.AttackEffect(), **SAVING, ckpt_path="last")


# ---------------------------------------------------------------------- bad input


def test_a_federation_without_an_attack_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"federation\.attack must be set, got attack = null"):
        fit(fl.AttackEffect(), attack=None)
    assert not list(Path().iterdir())


def test_an_evaluation_that_moves_buffers_is_refused_and_one_without_buffers_is_not() -> None:
    with pytest.raises(fl.ConfigError, match=r"must be eval, got evaluation_mode = train"):
        fit(fl.AttackEffect(), client=small_client(evaluation_mode="train"))
    client = linear()
    client.evaluation_mode = "train"
    fit(fl.AttackEffect(), client=client, rounds=1)
