"""A Little Is Enough."""

from __future__ import annotations

import math

import pytest
import torch
from attacks.rounds import a_round, sent_by

import leadfl_pl as fl
from leadfl_pl.attacks.alie import largest_z


def alie_by_hand(reference: list[list[float]], z: float) -> list[float]:
    """Coordinate by coordinate, as in the paper's algorithm 3, with the code's sign."""
    r = len(reference)
    result = []
    for column in zip(*reference, strict=True):
        mean = sum(column) / r
        variance = sum((v - mean) ** 2 for v in column) / r
        result.append(mean - z * math.sqrt(variance))
    return result


@pytest.mark.parametrize("omniscient", [True, False])
def test_every_attacker_sends_the_mean_less_z_deviations(omniscient: bool) -> None:
    updates, malicious, honest = a_round()
    sent = sent_by(fl.ALIE(z=1.5, omniscient=omniscient), updates, malicious)
    reference = honest if omniscient else updates[malicious]
    by_hand = torch.tensor(alie_by_hand(reference.tolist(), 1.5), dtype=updates.dtype)
    torch.testing.assert_close(sent, by_hand.expand_as(sent))


def test_z_of_zero_sends_the_honest_mean() -> None:
    updates, malicious, honest = a_round()
    sent = sent_by(fl.ALIE(z=0), updates, malicious)
    torch.testing.assert_close(sent, honest.mean(dim=0).expand_as(sent))


def phi(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


@pytest.mark.parametrize(("n", "m", "s"), [(50, 24, 2), (51, 12, 14), (10, 3, 3), (10, 1, 5)])
def test_the_default_z_wins_over_s_honest_clients(n: int, m: int, s: int) -> None:
    assert s == math.floor(n / 2 + 1) - m
    assert phi(largest_z(n, m)) == pytest.approx((n - m - s) / (n - m))


def test_the_default_is_that_z() -> None:
    updates, malicious, _ = a_round(10, 3)
    default, fixed = (sent_by(fl.ALIE(z=z), updates, malicious) for z in (None, largest_z(10, 3)))
    assert torch.equal(default, fixed)
    assert not torch.equal(default, sent_by(fl.ALIE(z=largest_z(10, 4)), updates, malicious))


@pytest.mark.parametrize(("n", "m"), [(10, 6), (10, 9), (10, 10), (1, 1), (2, 1), (3, 2)])
def test_z_is_finite_where_the_formula_is_not(n: int, m: int) -> None:
    assert math.isfinite(largest_z(n, m))


def test_six_of_ten_shift_further_than_four_of_ten() -> None:
    assert largest_z(10, 6) == pytest.approx(1.1503, abs=1e-4)
    assert largest_z(10, 6) > largest_z(10, 5) > largest_z(10, 4)


def test_a_z_that_is_not_finite_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="z must be a finite number, got z = nan"):
        fl.ALIE(z=float("nan"))


def test_an_inner_attack_on_updates_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"ALIE: attack must be an attack on data.* IPM"):
        fl.ALIE(fl.IPM())
    with pytest.raises(fl.ConfigError, match="got attack = Neurotoxin"):
        fl.ALIE(fl.Neurotoxin(fl.ModelReplacement()))
    fl.ALIE(fl.Neurotoxin(fl.PatternBackdoor()))
