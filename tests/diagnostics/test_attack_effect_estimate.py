"""The estimate of equations (1) and (2) against the measured attack effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from tiny import SmallImages, small_client, small_trainer, weights
from torch import nn

import leadfl_pl as fl

BURST = fl.BurstySchedule(period=5, burst=1, num_malicious=3)
NAMES = [
    f"attack_effect/{kind}{since}/{what}"
    for kind in ("exact", "diagonal", "flat")
    for since in ("", "_since_attack")
    for what in ("error", "cosine")
]


class Faint(fl.Attack):
    """Moves the model by very little, so that its effect is linear."""

    def corrupt(self, updates, malicious, rng):
        moved = updates.clone()
        moved[malicious] += 1e-7 * torch.arange(updates.shape[1]).to(updates).cos()
        return moved


def run(
    *callbacks: Callback, rule: fl.Aggregator | None = None, attack: fl.Attack | None = None,
    defense: fl.ClientDefense | None = None, rounds: int = 4, root: str | None = None,
    ckpt_path: str | None = None, precision: str = "64-true", client: Any = None,
    federation: dict | None = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """Final state and rows of a bursty run of a network without kinks, with two callbacks."""
    report = fl.RunReport()
    trainer = small_trainer(
        rule, attack or Faint(), BURST, [*callbacks, report], rounds, federation,
        precision=precision, enable_checkpointing=root is not None, default_root_dir=root, **kwargs,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))
    client = client or fl.FederatedClient(network, defense, lr=0.2)
    data = SmallImages(batch_size=8, split=fl.QuantitySkew())
    trainer.fit(client, datamodule=data, ckpt_path=ckpt_path)
    return weights(client), report.rows


def both() -> tuple[Callback, Callback]:
    return fl.AttackEffect(), fl.AttackEffectEstimate()


RULES = {
    "FedAvg": fl.FedAvg,
    "Multi-Krum": fl.MultiKrum,
    "server decay": lambda: fl.ServerDecay(fl.FedAvg(), half_life=2.0),
}


class Noisy(fl.ClientDefense):
    """Draws from the global generator."""

    def after_step(self, step: Any, state: Any) -> None:
        for p in step.params:
            p += 0.01 * torch.randn(p.shape, dtype=p.dtype)


DEFENSES = [Noisy(), None, fl.Contraction(1.0, "all"), fl.Contraction(1.0), fl.LeadFL(alpha=2.0)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: type(d).__name__)
def test_the_estimate_of_a_small_effect_is_the_measured_one(rule: str, defense: Any) -> None:
    _, rows = run(*both(), rule=RULES[rule](), defense=defense, federation={"server_lr": 0.7})
    assert not set(NAMES) & set(rows[0])
    for row in rows[1:]:
        assert row["attack_effect/exact/error"] < 1e-4
        assert row["attack_effect/exact_since_attack/error"] < 1e-4
        assert row["attack_effect/exact/cosine"] == pytest.approx(1)
        assert row["attack_effect/flat/error"] > 1e-2
        assert row["attack_effect/diagonal/error"] > 1e-2
        assert row["attack_effect/rule_residual"] < 1e-5
    first, *_, last = rows[1:]
    for kind in ("exact", "diagonal", "flat"):
        ahead, since = (f"attack_effect/{kind}{since}/error" for since in ("", "_since_attack"))
        assert first[ahead] == first[since]
        assert kind == "exact" or last[ahead] < last[since]


class Squares(fl.ClientDefense):
    """Is another function of W + v than of W - v."""

    def after_step(self, step: Any, state: Any) -> None:
        for p in step.params:
            p -= 0.01 * p.square()


class Push(fl.Attack):
    def corrupt(self, updates, malicious, rng):
        moved = updates.clone()
        moved[malicious] += torch.arange(updates.shape[1]).to(updates).cos()
        return moved


def test_a_defense_is_taken_at_the_twins_model_and_not_at_its_mirror_image() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    client = fl.FederatedClient(network, Squares(), lr=1e-9)  # the Hessian plays no part
    _, rows = run(*both(), attack=Push(), client=client)
    for row in rows[1:]:
        assert row["attack_effect/norm"] > 1
        assert row["attack_effect/flat/error"] < 1e-6


def test_what_is_carried_since_an_attack_starts_at_its_end(tmp_path) -> None:
    run(fl.AttackEffect(), root="run", rounds=3)
    _, rows = run(*both(), root="run", ckpt_path="last", rounds=7)
    since = ["attack_effect/exact_since_attack/error" in row for row in rows]
    assert since == [False] * 6 + [True]
    assert "attack_effect/exact/error" in rows[3]


def test_a_rule_that_is_no_mean_has_a_residual() -> None:
    _, rows = run(*both(), rule=fl.Median(), rounds=2)
    assert rows[1]["attack_effect/rule_residual"] > 0.01


def test_a_run_is_the_same_to_the_bit_with_it_and_has_its_numbers() -> None:
    settings = {"attack": fl.PatternBackdoor(), "precision": "32-true", "defense": fl.FLWBC()}
    state, rows = run(fl.AttackEffect(), **settings)
    estimated_state, estimated_rows = run(*both(), **settings)
    assert torch.equal(state, estimated_state)
    added = {*NAMES, "attack_effect/rule_residual"}
    assert added == set(estimated_rows[1]) - set(rows[1])
    assert [{k: v for k, v in row.items() if k not in added} for row in estimated_rows] == rows


def test_no_effect_has_no_estimate() -> None:
    class Nothing(fl.Attack):
        def corrupt(self, updates, malicious, rng):
            return updates

    _, rows = run(*both(), attack=Nothing())
    assert not any(set(NAMES) & set(row) for row in rows)


def test_an_attacked_round_starts_the_estimate_anew() -> None:
    _, rows = run(*both(), rounds=7)
    assert "attack_effect/exact/error" not in rows[5]
    ahead, since = (f"attack_effect/flat{since}/error" for since in ("", "_since_attack"))
    assert rows[4][ahead] != rows[4][since]
    assert rows[6][ahead] == rows[6][since]


@pytest.mark.parametrize("ckpt_path", ["last", "evaluated/epoch=2.ckpt"])
def test_they_go_on_from_a_checkpoint_with_the_same_numbers(ckpt_path: str) -> None:
    def all_of_them() -> list[Callback]:
        evaluated = ModelCheckpoint(
            "evaluated", "{epoch}", save_top_k=-1, save_on_train_epoch_end=False
        )
        return [*both(), fl.Curvature(every_n_rounds=1, samples=2), evaluated]

    settings = {"attack": fl.PatternBackdoor(), "precision": "32-true", "rounds": 4,
                "federation": {"local_epochs": 3}}  # fmt: skip
    _, whole = run(*all_of_them(), **settings, root="whole")
    run(*all_of_them(), **settings | {"rounds": 3}, root="run")
    _, rows = run(*all_of_them(), **settings, root="run", ckpt_path=ckpt_path)
    assert {NAMES[0], "curvature/eta_h"} <= set(rows[2]) & set(rows[3])
    assert rows == whole


@pytest.mark.parametrize(
    ("callbacks", "got"),
    [([], "got RoundMetrics, AttackEffectEstimate"), ([fl.AttackEffect()], "AttackEffect,")],
)
def test_it_needs_an_attack_effect_before_it(callbacks: list[Callback], got: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"needs an AttackEffect before it .*{got}"):
        run(fl.AttackEffectEstimate(), *callbacks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 2}, "needs one process, got 2: devices = 1"),
        ({"federation": {"carry_momentum": True}}, "carry_momentum = False, got carry_momentum"),
        ({"federation": {"distance_space": "state"}}, "distance_space = params, got distance_sp"),
    ],
    ids=str,
)
def test_what_it_cannot_estimate_is_one_sentence(settings: dict, message: str) -> None:
    trainer = small_trainer(attack=Faint(), callbacks=[*both()], **settings)
    with pytest.raises(fl.ConfigError, match=message):
        trainer.callbacks[2].setup(trainer, small_client(), "fit")


def test_a_client_that_overrides_its_step_is_refused() -> None:
    class Mine(fl.FederatedClient):
        def local_step(self, batch, optimizer, backward):
            return super().local_step(batch, optimizer, backward)

    with pytest.raises(fl.ConfigError, match=r"leaves local_step\(\) as it is.*model = Mine"):
        run(*both(), client=Mine(small_client().model))


def test_a_defense_that_asks_for_other_gradients_is_refused_before_the_first_round() -> None:
    trained: list[int] = []
    seen = LambdaCallback(on_train_epoch_start=lambda *_: trained.append(1))
    with pytest.raises(fl.ConfigError, match=r"must ask for no gradient_at other .*, got SAM$"):
        run(*both(), seen, defense=fl.SAM())
    assert not trained


def test_a_rule_that_keeps_the_model_has_no_residual() -> None:
    class Keeps(fl.FedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rounds", torch.tensor(0))

        def combine(self, updates, weights):
            self.rounds = self.rounds + 1
            return super().combine(updates, weights) * (self.rounds == 1)

    _, rows = run(*both(), rule=Keeps(), rounds=2)
    assert rows[1]["attack_effect/rule_residual"] == 0
