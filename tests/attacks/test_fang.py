"""Fang et al.'s attacks on the trimmed mean and on Krum."""

from __future__ import annotations

import math

import pytest
import torch
from attacks.rounds import a_round, sent_by

import leadfl_pl as fl
from leadfl_pl.attacks.fang import krum_chooses, largest_lambda


def trimmed_mean_ranges(rows: list[list[float]], b: float) -> list[tuple[float, float]]:
    """The intervals of the paper's four cases, by coordinate."""
    ranges = []
    for column in zip(*rows, strict=True):
        low, high = min(column), max(column)
        if sum(column) < 0:
            ranges.append((high, b * high) if high > 0 else (high, high / b))
        else:
            ranges.append((low / b, low) if low > 0 else (b * low, low))
    return ranges


def test_draws_fill_the_papers_intervals_and_stay_inside() -> None:
    updates, malicious, _ = a_round(300, 290, d=8)
    updates[~malicious, 0] = updates[~malicious, 0].abs() + 0.1  # all above zero
    updates[~malicious, 1] = -updates[~malicious, 1].abs() - 0.1
    sent = sent_by(fl.FangTrimmedMean(), updates, malicious)
    ranges = trimmed_mean_ranges(updates[~malicious].tolist(), 2)
    for column, (low, high) in zip(sent.T, ranges, strict=True):
        assert low <= column.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < column.max() <= high


def test_the_four_cases_by_hand() -> None:
    honest = torch.tensor([[1.0, -1, -1, 1], [4, -4, 4, -4]], dtype=torch.float64)
    updates = torch.cat([honest, torch.full((50, 4), 77.0, dtype=torch.float64)])
    sent = sent_by(fl.FangTrimmedMean(b=2), updates, torch.arange(52) > 1)
    for column, (low, high) in zip(sent.T, [(0.5, 1), (-1, -0.5), (-2, -1), (1, 2)], strict=True):
        assert low <= column.min() < column.max() <= high


def test_a_factor_of_one_sends_the_outermost_honest_values() -> None:
    updates, malicious, honest = a_round()
    sent = sent_by(fl.FangTrimmedMean(b=1), updates, malicious)
    mean = honest.mean(dim=0)
    wrong_side = torch.where(mean > 0, honest.amin(dim=0), honest.amax(dim=0))
    assert torch.equal(sent, wrong_side.expand_as(sent))


def test_without_omniscience_three_to_four_deviations_against_the_own_mean() -> None:
    updates, malicious, _ = a_round(300, 290)
    sent = sent_by(fl.FangTrimmedMean(omniscient=False), updates, malicious)
    deviation, mean = torch.std_mean(updates[malicious], dim=0, correction=0)
    shifts = (mean - sent) / deviation * mean.sign()
    assert 3 <= shifts.min() < 3.05
    assert 3.95 < shifts.max() <= 4


def test_attackers_draw_for_themselves_from_the_given_generator() -> None:
    updates, malicious, _ = a_round()
    first, again, other = (
        sent_by(fl.FangTrimmedMean(), updates, malicious, seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_a_coordinate_without_a_direction_is_left_at_zero() -> None:
    updates = torch.tensor([[1.0, 2], [-1, 2], [5, 5]])
    (sent,) = sent_by(fl.FangTrimmedMean(), updates, torch.tensor([False, False, True]))
    assert sent[0] == 0
    assert 1 <= sent[1] <= 2


@pytest.mark.parametrize(("b", "wanted"), [(0.5, ">= 1"), (float("nan"), "a finite number")])
def test_a_factor_below_one_is_refused(b: float, wanted: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"FangTrimmedMean: b must be {wanted}, got b = {b}"):
        fl.FangTrimmedMean(b=b)


# ------------------------------------------------------------------ Krum


def distance(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def krum_by_hand(rows: list[list[float]], f: int) -> int:
    """Blanchard et al.: the row with the least sum over its n - f - 2 nearest others."""
    scores = []
    for i, row in enumerate(rows):
        others = sorted(distance(row, other) for j, other in enumerate(rows) if j != i)
        scores.append(sum(others[: max(1, len(rows) - f - 2)]))
    return scores.index(min(scores))


def krum_attack_by_hand(reference: list[list[float]], counts: list[int]) -> list[float]:
    """The paper's search, with theorem 1's argument on squared distances."""
    r, d = len(reference), len(reference[0])
    signs = [math.copysign(1, sum(c)) for c in zip(*reference, strict=True)]
    zero = [0.0] * d
    for c in counts:
        nearest = []
        for i, row in enumerate(reference):
            others = sorted(distance(row, o) for j, o in enumerate(reference) if j != i)
            nearest.append(sum(others[: r - 2]))
        reach = math.sqrt(min(nearest) / max(1, r - c - 1))
        value = (reach + max(math.sqrt(distance(row, zero)) for row in reference)) / math.sqrt(d)
        while value >= 1e-5:
            crafted = [-value * s for s in signs]
            if krum_by_hand([crafted] * c + reference, c) < c:
                return crafted
            value /= 2
    return [-value * s for s in signs]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "m"), [(9, 3), (9, 2), (10, 6), (12, 4)])
@pytest.mark.parametrize("omniscient", [True, False])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_lambda_is_the_one_the_papers_search_finds(n, m, omniscient, seed, spread) -> None:
    updates, malicious, _ = a_round(n, m, seed=seed)
    updates = updates * spread + torch.linspace(-1, 1, 11, dtype=updates.dtype)
    sent = sent_by(fl.FangKrum(omniscient=omniscient), updates, malicious)
    reference = updates[~malicious] if omniscient else updates[malicious]
    counts = [m] if omniscient else list(range(1, m + 1))
    by_hand = torch.tensor(krum_attack_by_hand(reference.tolist(), counts), dtype=updates.dtype)
    torch.testing.assert_close(sent, by_hand.expand_as(sent))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_krum_is_asked_about_as_many_attackers_as_there_are(count: int) -> None:
    answers = []
    for seed in range(60):
        _, _, honest = a_round(9, 3, d=3, seed=seed)
        crafted = -0.1 * (1 + seed % 10) * honest.mean(dim=0).sign()
        rows = [crafted.tolist()] * count + honest.tolist()
        answers.append(krum_chooses(honest, crafted, count))
        assert answers[-1] == (krum_by_hand(rows, count) < count)
    assert 0 < sum(answers) < 60  # both answers occur


def test_krum_really_chooses_an_attacker() -> None:
    updates, malicious, honest = a_round(12, 4)
    sent = fl.FangKrum().corrupt(updates, malicious, torch.Generator())
    (chosen,) = fl.Krum(f=4).select(sent)
    assert malicious[chosen]
    assert sent[chosen] @ honest.mean(dim=0) < 0


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [1, 2, 4])
def test_above_the_bound_krum_never_chooses(seed: int, count: int) -> None:
    _, _, honest = a_round(9, 2, seed=seed)
    direction = honest.mean(dim=0).sign()
    bound = largest_lambda(honest, direction, count)
    for factor in (1.0001, 1.5, 4):
        assert not krum_chooses(honest, -factor * bound * direction, count)


def test_honest_clients_that_agree_are_sent_nothing_harmful() -> None:
    """Krum sees identical updates at distance 0: lambda shrinks until the search gives up."""
    updates, malicious, honest = a_round(9, 2)
    updates[~malicious] = honest[0]
    sent = sent_by(fl.FangKrum(), updates, malicious)
    assert sent.abs().max() < 1e-5
