"""Min-Max and Min-Sum: the largest step that an inequality admits."""

from __future__ import annotations

import math

import pytest
import torch
from attacks.rounds import a_round, sent_by

import leadfl_pl as fl

ATTACKS = {"max": fl.MinMax, "sum": fl.MinSum}
both = pytest.mark.parametrize("kind", ["max", "sum"])
every_perturbation = pytest.mark.parametrize("perturbation", ["std", "sign", "unit"])


def squares(rows: list[list[float]], point: list[float]) -> list[float]:
    return [sum((a - b) ** 2 for a, b in zip(row, point, strict=True)) for row in rows]


def allowed(kind: str, rows: list[list[float]], point: list[float]) -> bool:
    """The paper's two inequalities, in loops."""
    pairs = [squares(rows, row) for row in rows]
    if kind == "max":
        return max(squares(rows, point)) <= max(max(row) for row in pairs)
    return sum(squares(rows, point)) <= max(sum(row) for row in pairs)


def bisected(kind: str, perturbation: str, rows: list[list[float]]) -> list[float]:
    """mu + gamma p with the largest allowed gamma, found by halving an interval."""
    r = len(rows)
    columns = list(zip(*rows, strict=True))
    mu = [sum(c) / r for c in columns]
    length = math.sqrt(sum(v * v for v in mu))
    p = {
        "std": [
            -math.sqrt(sum((v - m) ** 2 for v in c) / (r - 1))
            for c, m in zip(columns, mu, strict=True)
        ],
        "sign": [-math.copysign(1.0, m) for m in mu],
        "unit": [-m / length for m in mu],
    }[perturbation]

    def point(gamma: float) -> list[float]:
        return [m + gamma * v for m, v in zip(mu, p, strict=True)]

    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(kind, rows, point(middle)) else (low, middle)
    return point(low)


@both
@every_perturbation
@pytest.mark.parametrize("omniscient", [True, False])
def test_the_step_is_the_one_that_bisection_finds(kind, perturbation, omniscient) -> None:
    updates, malicious, honest = a_round(9, 4)
    attack = ATTACKS[kind](perturbation=perturbation, omniscient=omniscient)
    sent = sent_by(attack, updates, malicious)
    reference = honest if omniscient else updates[malicious]
    oracle = torch.tensor(bisected(kind, perturbation, reference.tolist()), dtype=updates.dtype)
    torch.testing.assert_close(sent, oracle.expand_as(sent), rtol=1e-9, atol=1e-9)


def test_min_sum_stays_closer_than_min_max() -> None:
    updates, malicious, honest = a_round(9, 4)
    far, near = (sent_by(attack(), updates, malicious)[0] for attack in (fl.MinMax, fl.MinSum))
    mean = honest.mean(dim=0)
    assert (near - mean).norm() < (far - mean).norm()


def test_min_sum_takes_the_papers_largest_sum_and_not_the_codes_smallest() -> None:
    updates = torch.tensor([[0.0, 1], [0, -1], [9, 0], [5, 5]], dtype=torch.float64)
    malicious = torch.tensor([False, False, False, True])
    (sent,) = sent_by(fl.MinSum(perturbation="unit"), updates, malicious)
    # mu = (3, 0); sums of squared distances 86, 86 and 164; around mu 10 + 10 + 36 = 56
    assert sent.tolist() == pytest.approx([3 - 6, 0])  # gamma^2 = (164 - 56) / 3 = 36


@both
@every_perturbation
def test_identical_honest_updates_leave_no_room(kind, perturbation) -> None:
    updates, malicious, honest = a_round()
    updates[~malicious] = honest[0]
    sent = sent_by(ATTACKS[kind](perturbation=perturbation), updates, malicious)
    torch.testing.assert_close(sent, honest[0].expand_as(sent))


@both
def test_the_direction_is_against_the_mean(kind) -> None:
    updates, malicious, honest = a_round()
    mean = honest.mean(dim=0)
    for perturbation in ("sign", "unit"):
        (sent, *_) = sent_by(ATTACKS[kind](perturbation=perturbation), updates, malicious)
        assert (sent - mean) @ mean < 0
    (sent, *_) = sent_by(ATTACKS[kind](), updates, malicious)
    assert bool((sent < mean).all())


@both
def test_an_unknown_perturbation_is_refused(kind) -> None:
    with pytest.raises(fl.ConfigError, match=f"Min{kind.title()}: perturbation must be one of std"):
        ATTACKS[kind](perturbation="variance")
