"""The half-life fitted to backdoor accuracy after bursts."""

from __future__ import annotations

from math import isnan, log, nan

import numpy as np
import pytest

from leadfl_pl import ConfigError, RecoveryHalfLife
from leadfl_pl.metrics import half_life

BURST = [True, False, False, False]


def test_an_exact_decay_gives_its_half_life() -> None:
    values = [0.9 * 2 ** (-t / 3.6) for t in range(8)]
    assert half_life(values, [True] + [False] * 7) == pytest.approx(3.6)


def test_the_fit_is_least_squares_of_the_logarithm() -> None:
    values = [0.9, 0.8, 0.3, 0.4]
    slope = np.polyfit(range(4), np.log(values), 1)[0]
    assert half_life(values, BURST) == pytest.approx(-log(2) / slope)
    assert abs(half_life(values, BURST) - -3 * log(2) / log(0.4 / 0.9)) > 0.1  # the end points'


def test_two_bursts_have_a_start_each_and_one_half_life() -> None:
    values = [0.8, 0.4, 0.2, 0.1, 0.6, 0.3, 0.15]
    bursts = [*BURST, True, False, False]
    assert half_life(values, bursts) == pytest.approx(1.0)
    common_start = np.polyfit([0, 1, 2, 3, 0, 1, 2], np.log(values), 1)[0]
    assert -log(2) / common_start != pytest.approx(1.0, abs=0.01)


def test_longer_recoveries_weigh_more() -> None:
    # spread and covariance by hand: 5 and -5 ln 2 of the first, 1/2 and -ln 2 of the second
    values = [0.8, 0.4, 0.2, 0.1, 0.8, 0.2]
    assert half_life(values, [*BURST, True, False]) == pytest.approx(5.5 / 6)


def test_rounds_of_the_burst_but_its_last_are_not_part_of_the_decay() -> None:
    assert half_life([0.1, 0.9, 0.8, 0.4], [True, True, True, False]) == pytest.approx(1.0)


def test_what_follows_the_floor_does_not_flatten_the_decay() -> None:
    decay, clean = [0.8, 0.4, 0.2, 0.1], [0.01, 0.02, 0.01, 0.3]
    # the first value below the floor counts as the floor, the next power of two
    assert half_life([*decay, *clean], [True] + [False] * 7) == pytest.approx(1.0)


def test_a_backdoor_gone_after_one_round_has_a_short_half_life() -> None:
    assert half_life([0.8, 0.0], [True, False]) == pytest.approx(1 / 4)  # 0.8 to 0.05


def test_rounds_without_a_value_are_left_out() -> None:
    assert half_life([0.8, nan, 0.2, nan], BURST) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("values", "bursts"),
    [
        ([0.5, 0.6, 0.7], [True, False, False]),  # grows
        ([0.5, 0.5, 0.5], [True, False, False]),  # stays
        ([0.95] * 5, [True, False, False, False, False]),  # stays, but for rounding of the sums
        ([0.9, 0.8, 0.1], [True, True, True]),  # nothing after the burst
        ([0.8, 0.4, 0.2], [False, False, False]),  # no burst
        ([0.04, 0.02, 0.01], [True, False, False]),  # never above the floor
        ([], []),
    ],
)
def test_without_a_decay_there_is_no_half_life(values: list[float], bursts: list[bool]) -> None:
    assert isnan(half_life(values, bursts))


def test_the_half_life_goes_on_from_a_checkpoint() -> None:
    rounds = [(0.9, 6), (0.8, 6), (0.4, 2), (0.2, 0)]
    first, second = RecoveryHalfLife(majority=5), RecoveryHalfLife(majority=5)
    for value, malicious in rounds[:2]:
        first.update(value, malicious)
    assert isnan(first.compute().item())
    second.load_state_dict(first.state_dict())
    for value, malicious in rounds[2:]:
        second.update(value, malicious)
    assert second.compute().item() == pytest.approx(1.0)


def test_a_floor_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="RecoveryHalfLife: floor must be > 0, got floor = 0"):
        RecoveryHalfLife(floor=0)
