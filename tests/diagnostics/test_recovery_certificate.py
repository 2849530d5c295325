"""The recovery certificate: never wrong, and worth something a few rounds after a burst."""

from __future__ import annotations

from math import inf

import pytest
import torch
from test_contraction import BACKDOOR, BURST
from tiny import NetWithBatchNorm, small_trainer
from torch import nn

import leadfl_pl as fl
from leadfl_pl.diagnostics import AttackEffect, RecoveryCertificate
from leadfl_pl.diagnostics.recovery_certificate import (
    distance_to_class,
    distance_to_error,
    rounding,
)
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

LR = 0.08
CERTIFIED = "certificate/clean_accuracy", "val/clean_accuracy"
BACKDOOR_BOUND = "certificate/backdoor_accuracy", "val/backdoor_accuracy"
BACKDOORS = [BACKDOOR, fl.ModelReplacement(BACKDOOR, gamma=5.0), fl.IPM(BACKDOOR)]


def client(network: nn.Module | None = None, half_life: float = 1.0, **kwargs) -> fl.FederatedClient:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network or fl.SoftmaxRegression()
    return fl.FederatedClient(
        network, **{"defense": fl.Contraction(half_life, "all"), "lr": LR} | kwargs
    )


def trainer(seed: int = 0, attack: fl.Attack | None = BACKDOOR, rounds: int = 12, **kwargs):
    federation = kwargs.pop("federation", {})
    callbacks = kwargs.pop("callbacks", None) or [AttackEffect(), RecoveryCertificate()]
    sizes = {"num_clients": 40, "num_malicious": 10, "clients_per_round": 5, "seed": seed}
    rule, schedule = kwargs.pop("rule", None), kwargs.pop("schedule", BURST)
    return small_trainer(
        rule, attack, schedule, callbacks, rounds, sizes | federation,
        **{"precision": "64-true"} | kwargs,
    )  # fmt: skip


def rows(made: fl.FederatedTrainer, defended: fl.FederatedClient) -> list[dict[str, float]]:
    data = fl.Digits(split=fl.QuantitySkew(beta=2.0, min_examples=4), batch_size=8)
    made.fit(defended, datamodule=data)
    (report,) = [c for c in made.callbacks if isinstance(c, fl.RunReport)]
    return report.rows


@pytest.mark.parametrize("precision", ["64-true", "32-true"])
@pytest.mark.parametrize("half_life", [0.5, 1.0, 3.0, inf])
@pytest.mark.parametrize("attack", BACKDOORS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_never_wrong(seed, attack, half_life, precision) -> None:
    for row in rows(trainer(seed, attack, precision=precision), client(half_life=half_life)):
        assert row[CERTIFIED[0]] <= row[CERTIFIED[1]]
        assert row[BACKDOOR_BOUND[0]] >= row[BACKDOOR_BOUND[1]]


def test_it_says_something_some_rounds_after_a_burst() -> None:
    after = [row for row in rows(trainer(), client()) if row["round"] in (5, 11)]
    for row in after:
        assert row["certificate/clean_accuracy"] > 0.3
        assert row["certificate/backdoor_accuracy"] < 0.5
    for row in rows(trainer(), client(half_life=inf))[4:6]:  # nothing without a half-life
        assert row["certificate/clean_accuracy"] < 0.1
