"""A user's attack that returns something else than it must is named with its method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks.rounds import a_round
from tiny import NetWithBatchNorm

import leadfl_pl as fl
from leadfl_pl.attacks import check_attack, check_corrupted
from leadfl_pl.core.values import AttackerView

X, Y = torch.rand(6, 1, 8, 8), torch.arange(6)
VIEW = AttackerView(0, 0, NetWithBatchNorm(), X, Y, None)
COUNTS = torch.ones(6, dtype=torch.bool)


class Mine(fl.Attack):
    """An attack whose methods return what they are given."""

    def __init__(self, **returned: Any) -> None:
        for method, value in returned.items():
            setattr(self, f"{method}_value", value)

    def local(self, view):
        return getattr(self, "local_value", self)

    def tasks(self, x, y):
        return getattr(self, "tasks_value", [(x, y)])

    def balance(self, losses, gradients):
        return getattr(self, "balance_value", torch.ones_like(losses))

    def project(self, gradients):
        return getattr(self, "project_value", gradients)

    def constrain(self, params, start, step, num_steps):
        params[0] = getattr(self, "constrain_value", params[0])

    def trigger(self, x, y):
        return getattr(self, "trigger_value", None)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"local": None}, "Mine.local must return an Attack, got None"),
        ({"tasks": None}, r"Mine.tasks must return a list of \(images, labels\), got None"),
        ({"tasks": []}, r"a list of \(images, labels\), got list\(\)"),
        ({"tasks": [X]}, r"a list of \(images, labels\), got list\(float32 of shape \(6"),
        ({"tasks": [(X[:, 0], Y)]}, r"Mine.tasks .* images a tensor of shape \(B, 1, 8, 8\)"),
        ({"tasks": [(X.double(), Y)]}, "images a tensor of float32, got float64"),
        (
            {"tasks": [(X / 0, Y)]},
            "Mine.tasks must return as images finite numbers, got NaN or inf",
        ),
        ({"tasks": [(X, Y[:5])]}, r"as labels a tensor of shape \(6,\), got int64 of shape \(5,\)"),
        ({"tasks": [(X, Y.float())]}, "as labels a tensor of int64, got float32"),
        ({"tasks": [(X, Y + 5)]}, r"labels in 0 \.\. 9, got \[5, 6, 7, 8, 9, 10\]"),
        ({"balance": 0.5}, r"Mine.balance must return a tensor of shape \(1,\), got float"),
        ({"balance": torch.ones(2)}, r"of shape \(1,\), got float32 of shape \(2,\)"),
        ({"project": None}, "Mine.project must return a list of 6 gradients, got None"),
        ({"project": [X]}, "a list of 6 gradients, got list"),
        ({"project": [X] * 6}, r"Mine.project must return as a gradient a tensor of shape \(4, 1"),
        ({"constrain": X}, r"Mine.constrain must leave a tensor of shape \(4, 1"),
        (
            {"trigger": X},
            r"Mine.trigger must return None or \(images, labels, which count\), got f",
        ),
        ({"trigger": (X[:3], Y[:3], COUNTS[:3])}, r"images a tensor of shape \(6, 1, 8, 8\), got"),
        ({"trigger": (X, Y, COUNTS.float())}, "as those which count a tensor of bool, got float32"),
    ],
)
def test_the_method_is_named_with_what_it_returned(returned: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        check_attack(Mine(**returned), VIEW, 10)


def test_what_is_right_passes_and_changes_nothing() -> None:
    state, before = torch.get_rng_state(), X.clone()
    check_attack(Mine(), VIEW, 10)
    check_attack(Mine(tasks=[(X[:2], Y[:2]), (X, Y)], trigger=(X, Y, COUNTS)), VIEW, 10)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(X, before)


def test_of_a_wrapped_attack_the_one_at_fault_is_named() -> None:
    with pytest.raises(fl.ConfigError, match=r"Mine.tasks must return"):
        check_attack(fl.ModelReplacement(Mine(tasks=None)), VIEW, 10)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (lambda u, m: None, r"IPM.corrupt must return a tensor of shape \(7, 11\), got None"),
        (lambda u, m: u[m], r"of shape \(7, 11\), got float64 of shape \(3, 11\)"),
        (lambda u, m: u.float(), "a tensor of float64, got float32"),
        (lambda u, m: u + 1, "the updates of honest clients as they are, got others"),
    ],
)
def test_only_the_attackers_updates_may_differ(sent, message: str) -> None:
    updates, malicious, _ = a_round()
    with pytest.raises(fl.ConfigError, match=message):
        check_corrupted(fl.IPM(), updates, malicious, sent(updates, malicious))
    changed = updates.clone()
    changed[malicious] = float("nan")
    check_corrupted(fl.IPM(), updates, malicious, changed)
