"""The recovery certificate: never wrong, and worth something a few rounds after a burst."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from test_contraction import BACKDOOR, BURST
from tiny import small_trainer
from torch import nn

import leadfl_pl as fl
from leadfl_pl.diagnostics import AttackEffect, RecoveryCertificate
from leadfl_pl.diagnostics.recovery_certificate import (
    distance_to_class,
    distance_to_error,
    rounding,
)
from leadfl_pl.diagnostics.theorem import smoothness
from leadfl_pl.federation.server import RoundResult
from leadfl_pl.models import Normalize


def linear(bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Generator]:
    """200 images as (x, 1) or x (N, D), parameters (5, D), a class for each image (N,)."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=rng, dtype=torch.float64)
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1) if bias else x
    w = torch.randn(5, x.shape[1], generator=rng, dtype=torch.float64)
    return x, w, torch.randint(5, (len(x),), generator=rng), rng


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [0.1, 0.5, 1.0])
def test_no_change_of_exactly_this_norm_gets_further_than_the_distance(size, bias) -> None:
    x, w, classes, rng = linear(bias)
    radius = size * x.norm(dim=1)
    safe = distance_to_error(x @ w.T, classes) > radius
    out_of_reach = distance_to_class(x @ w.T, classes) > radius
    assert 0 < int(safe.sum()) < 200
    assert 0 < int(out_of_reach.sum()) < 200
    for _ in range(300):
        change = torch.randn(w.shape, generator=rng, dtype=torch.float64)
        predictions = (x @ (w + size * change / change.norm()).T).argmax(dim=1)
        assert bool((predictions == classes)[safe].all())
        assert not bool((predictions == classes)[out_of_reach].any())


def to_error(z: torch.Tensor, y: int) -> torch.Tensor:
    """The shortest move of logits (classes,) after which y has an equal: over all rivals."""
    moves = []
    for j in set(range(len(z))) - {y}:
        move = torch.zeros_like(z)
        move[j], move[y] = (z[y] - z[j]) / 2, (z[j] - z[y]) / 2
        moves.append(move if z[j] < z[y] else torch.zeros_like(z))
    return min(moves, key=torch.norm)


def to_class(z: torch.Tensor, c: int) -> torch.Tensor:
    """The shortest move of logits (classes,) after which c is largest: over all sets that meet."""
    moves = []
    for chosen in range(2 ** len(z)):
        meet = [j for j in range(len(z)) if chosen >> j & 1 or j == c]
        move = torch.zeros_like(z)
        move[meet] = z[meet].mean() - z[meet]
        if bool(((z + move) <= (z + move)[c] + 1e-12).all()):
            moves.append(move)
    return min(moves, key=torch.norm)


@pytest.mark.parametrize("bias", [True, False])
def test_a_change_that_is_a_little_larger_is_enough(bias: bool) -> None:
    x, w, classes, _ = linear(bias)
    errors, reached = distance_to_error(x @ w.T, classes), distance_to_class(x @ w.T, classes)
    three_meet = 0
    for i, c in enumerate(classes.tolist()):
        for move, distance in ((to_error(w @ x[i], c), errors), (to_class(w @ x[i], c), reached)):
            torch.testing.assert_close(move.norm(), distance[i])
        three_meet += int((move != 0).sum()) > 2
        change = torch.outer(move, x[i]) / x[i].square().sum()  # of the norm distance / ||x||
        assert float(change.norm()) == pytest.approx(float(reached[i] / x[i].norm()))
        assert int(((w + 1.001 * change) @ x[i]).argmax()) == c
    assert three_meet > 20  # where the difference of two logits alone says less


def test_a_label_that_is_not_predicted_is_no_distance_from_an_error() -> None:
    logits, label = torch.tensor([[1.0, 2.0], [2.0, 2.0]]), torch.tensor([0, 0])
    assert distance_to_error(logits, label).tolist() == [0.0, 0.0]
    assert distance_to_class(logits, label).tolist() == [pytest.approx(0.5**0.5), 0.0]


# ---------------------------------------------------------------------- runs

LR, ROUNDS = 0.08, 12
LOWER = "certificate/clean_accuracy", "val/clean_accuracy"
UPPER = "certificate/backdoor_accuracy", "val/backdoor_accuracy"
ATTACKS = [BACKDOOR, fl.ModelReplacement(BACKDOOR, gamma=5.0), fl.IPM(BACKDOOR)]
Rows = list[dict[str, float]]


def client(network: nn.Module | None = None, **kwargs: Any) -> fl.FederatedClient:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network or fl.SoftmaxRegression()
    return fl.FederatedClient(network, **{"defense": fl.Contraction(1.0, "all"), "lr": LR} | kwargs)


def trainer(
    seed: int = 0,
    attack: fl.Attack | None = BACKDOOR,
    rule: fl.Aggregator | None = None,
    callbacks: Sequence[type[Callback]] = (AttackEffect, RecoveryCertificate),
    schedule: fl.Schedule = BURST,
    rounds: int = ROUNDS,
    federation: dict[str, Any] | None = None,
    **kwargs: Any,
) -> fl.FederatedTrainer:
    sizes = {"num_clients": 40, "num_malicious": 10, "clients_per_round": 5, "seed": seed}
    return small_trainer(
        rule, attack, schedule, [make() for make in callbacks], rounds,
        sizes | (federation or {}), **{"precision": "64-true"} | kwargs,
    )  # fmt: skip


def run(of: fl.FederatedTrainer, by: fl.FederatedClient, ckpt_path: str | None = None) -> Rows:
    """What was logged in each round."""
    data = fl.Digits(split=fl.QuantitySkew(beta=2.0, min_examples=4), batch_size=8)
    of.fit(by, datamodule=data, ckpt_path=ckpt_path)
    (report,) = [c for c in of.callbacks if isinstance(c, fl.RunReport)]
    return report.rows


@pytest.mark.parametrize("precision", ["64-true", "32-true"])
@pytest.mark.parametrize(
    ("seed", "half_life", "anchor"),
    [(0, 0.25, "zero"), (1, 1.0, "zero"), (2, 3.0, "initial"), (3, inf, "zero")],
)
def test_it_is_never_wrong(seed: int, half_life: float, anchor: str, precision: str) -> None:
    defense = fl.Contraction(half_life, "all", anchor)
    of = trainer(seed, ATTACKS[seed % 3], precision=precision, rounds=8)
    rows = run(of, client(defense=defense))
    assert len(rows) == 8
    for row in rows:
        assert row[LOWER[0]] <= row[LOWER[1]]
        assert row[UPPER[0]] >= row[UPPER[1]]
        assert row["certificate/bound"] >= row["attack_effect/norm"] * (1 - 1e-6)


def test_some_rounds_after_a_burst_it_says_something() -> None:
    rows = run(trainer(), client())
    for row in (rows[5], rows[11]):
        assert row[LOWER[0]] > 0.2
        assert row[UPPER[0]] < 0.95
    without = run(trainer(rounds=6), client(defense=fl.Contraction(inf, "all")))[5]
    assert without[LOWER[0]] == 0.0
    assert without[UPPER[0]] == 1.0


def test_the_bound_halves_from_the_measured_norm_on() -> None:
    rows = run(trainer(), client(defense=fl.Contraction(2.0, "all")))
    for row in rows:
        since = row["round"] % 6 - 1  # rounds 0, 1, 6 and 7 have attackers
        last = rows[int(row["round"] - max(since, 0))]["attack_effect/norm"]
        assert row["certificate/bound"] == pytest.approx(last * 2 ** (-max(since, 0) / 2))


def test_before_any_attack_it_certifies_what_is_right() -> None:
    quiet = fl.ForcedRounds(fl.FixedSchedule(num_malicious=0), rounds=[3], num_malicious=3)
    rows = run(trainer(schedule=quiet, rounds=4, precision="32-true"), client())
    for row in rows[:3]:
        assert row["certificate/bound"] == 0.0
        assert row[LOWER[0]] == row[LOWER[1]]
        assert row[UPPER[0]] == row[UPPER[1]]
    assert rows[3]["certificate/bound"] > 0


def test_a_run_that_goes_on_keeps_its_bound(tmp_path: Path) -> None:
    whole = run(trainer(rounds=6), client())
    for there in (True, False):  # a checkpoint without the certificate: the norm is measured anew
        path = str(tmp_path / f"{there}.ckpt")
        kinds = [AttackEffect, RecoveryCertificate] if there else [AttackEffect]
        first = trainer(rounds=4, callbacks=kinds)
        run(first, client())
        first.save_checkpoint(path)
        rows = run(trainer(rounds=6), client(), path)
        bounds = [row["certificate/bound"] for row in rows[4:]]
        expected = [row["certificate/bound"] for row in whole[4:]]
        assert (bounds == expected) == there
        assert all(row["certificate/bound"] >= row["attack_effect/norm"] for row in rows[4:])


def test_a_used_certificate_leaves_no_bound_for_another_run(tmp_path: Path) -> None:
    path, used = str(tmp_path / "a.ckpt"), RecoveryCertificate()
    first = trainer(rounds=4, callbacks=[AttackEffect])
    run(first, client())
    first.save_checkpoint(path)
    run(trainer(1, rounds=2, callbacks=[AttackEffect, lambda: used]), client())
    rows = run(trainer(rounds=6, callbacks=[AttackEffect, lambda: used]), client(), path)
    assert rows[4:] == run(trainer(rounds=6), client(), path)[4:]


def test_rounding_drives_float32_less_far_than_is_said() -> None:
    for seed in (0, 1):
        ends = []
        for precision in ("32-true", "64-true"):
            one = client()
            of = trainer(seed, callbacks=[], rounds=1, precision=precision)
            run(of, one)
            ends.append(torch.cat([p.detach().flatten().double() for p in one.parameters()]))
        steps = max(of.fit_loop.clients.num_steps(c) for c in of.federation.cohort(0).client_ids)
        said = rounding(steps, 64, float(ends[1].norm()), torch.finfo(torch.float32).eps)
        assert 1e-9 < float((ends[0] - ends[1]).norm()) < said


class Doubles(Callback):
    """With a learning rate just below 2 / beta, the step would expand."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        for p in pl_module.parameters():
            p.grad *= 2


@pytest.mark.parametrize(
    ("message", "by", "of"),
    [
        (
            r"model.model must be one trainable torch.nn.Linear after a flatten, such as "
            r"SoftmaxRegression, got model = DigitsNet",
            {"network": fl.DigitsNet()},
            {},
        ),
        ("model.model must be", {"network": nn.Sequential(*fl.SoftmaxRegression(), nn.ReLU())}, {}),
        ("model.defense must be Contraction, got defense = LDP", {"defense": fl.LDP()}, {}),
        (
            "model.defense.parameters must be all, got parameters = matrices",
            {"defense": fl.Contraction(1.0)},
            {},
        ),
        ("model.momentum must be 0, got momentum = 0.5", {"momentum": 0.5}, {}),
        (
            r"model.lr must be <= 2 / beta = 0\.\d+ for these training images, got lr = 0.5",
            {"lr": 0.5},
            {},
        ),
        (
            "trainer.federation.aggregator must be FedAvg, got aggregator = Median",
            {},
            {"rule": fl.Median()},
        ),
        (
            "trainer.federation.server_lr must be 1, got server_lr = 0.5",
            {},
            {"federation": {"server_lr": 0.5}},
        ),
        (
            "trainer.federation.distance_space must be params, got distance_space = state",
            {},
            {"federation": {"distance_space": "state"}},
        ),
        (
            "trainer.precision must be 32 or 64, got precision = bf16-true",
            {},
            {"precision": "bf16-true"},
        ),
        (
            "trainer must be without a part in local steps, got trainer = Doubles overrides",
            {},
            {"callbacks": [AttackEffect, RecoveryCertificate, Doubles]},
        ),
        (
            "trainer.limit_val_batches must be 1.0, got limit_val_batches = 1$",
            {},
            {"limit_val_batches": 1},
        ),
        (
            "needs an AttackEffect before it among trainer.callbacks, got RoundMetrics",
            {},
            {"callbacks": [RecoveryCertificate]},
        ),
    ],
)  # fmt: skip
def test_where_the_theorem_does_not_hold_it_is_refused_before_training(message, by, of) -> None:
    made = trainer(**of)
    with pytest.raises(fl.ConfigError, match=message):
        run(made, client(**by))
    assert made.fit_loop.rounds_done == 0


@pytest.mark.parametrize("bias", [True, False])
def test_normalised_images_and_no_bias_are_linear_too(bias: bool) -> None:
    layers = [Normalize(0.3, 0.4), nn.Flatten(), nn.Linear(64, 10, bias=bias)]
    rows = run(trainer(rounds=4), client(nn.Sequential(*layers), lr=0.01))
    for row in rows:
        assert row[LOWER[0]] <= row[LOWER[1]]
        assert row[UPPER[0]] >= row[UPPER[1]]


@pytest.mark.parametrize("bias", [True, False])
def test_beta_is_the_largest_curvature_there_can_be(bias: bool) -> None:
    """By the exact Hessian: reached with two classes as likely as each other."""
    image = torch.rand(1, 1, 2, 2, dtype=torch.float64)
    last = nn.Linear(4, 2, bias=bias).double()
    nn.init.zeros_(last.weight)
    params = torch.zeros(sum(p.numel() for p in last.parameters()), dtype=torch.float64)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        w, b = flat[:8].view(2, 4), flat[8:] if bias else None
        return nn.functional.cross_entropy(
            nn.functional.linear(image.flatten(1), w, b), torch.tensor([0])
        )

    largest = torch.linalg.eigvalsh(torch.func.hessian(loss)(params))[-1]
    beta = smoothness(nn.Flatten(), last, fl.ImageSet(image, torch.tensor([0])))
    assert float(largest) == pytest.approx(beta)


@pytest.mark.parametrize("lost", [False, True])
def test_a_round_in_which_only_the_twin_lost_an_update_starts_from_the_measured_norm(lost) -> None:
    certificate, scalar = RecoveryCertificate(), torch.zeros(())
    certificate.bound, certificate.num_features = 1.0, 3
    certificate.effect = SimpleNamespace(twin_lost_updates=lost)
    result = RoundResult((1,), (False,), (1,), (1,), (1,), torch.ones(3), scalar, scalar)
    loop = SimpleNamespace(result=result, clients=SimpleNamespace(num_steps=lambda client: 1))
    module = SimpleNamespace(defense=fl.Contraction(1.0, "all"))
    of = SimpleNamespace(fit_loop=loop, lightning_module=module)
    after = certificate.next_bound(of, torch.ones(3), torch.full((3,), 2.0))
    assert after == pytest.approx(12**0.5 if lost else 0.5, abs=1e-4)
