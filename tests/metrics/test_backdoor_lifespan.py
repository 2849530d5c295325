"""Lifespans of backdoors: where they end, what is censored, and their mean over bursts."""

from __future__ import annotations

from math import isnan, nan

import pytest
import torch

from leadfl_pl import BackdoorLifespan, ConfigError
from leadfl_pl.metrics import Lifespan, lifespans, restricted_mean


def after_one_burst(*values: float, threshold: float = 0.5) -> Lifespan:
    """The lifespan where the first value is of the burst and the others follow it."""
    (life,) = lifespans(values, [True] + [False] * (len(values) - 1), threshold)
    return life


def measured(metric: BackdoorLifespan, values: list[float], malicious: list[int]) -> list[float]:
    for value, count in zip(values, malicious, strict=True):
        metric.update(torch.tensor(value), torch.tensor(count))
    return [number.item() for number in metric.compute()]


def test_a_lifespan_ends_where_the_backdoor_stays_down_and_not_where_it_first_dips() -> None:
    assert after_one_burst(0.9, 0.4, 0.6, 0.3, 0.2) == (3, False)  # the first dip is after 1


def test_a_lifespan_starts_with_the_last_round_of_its_burst() -> None:
    bursts = [False, True, True, True, False, False]
    assert lifespans([0.9, 0.9, 0.9, 0.9, 0.8, 0.1], bursts) == [(2, False)]


def test_a_backdoor_that_the_burst_did_not_raise_has_no_lifespan() -> None:
    assert after_one_burst(0.3, 0.2) == (0, False)
    assert after_one_burst(0.9, 0.2) == (1, False)


def test_an_accuracy_at_the_threshold_is_not_below_it() -> None:
    assert after_one_burst(0.9, 0.5, 0.49) == (2, False)
    assert after_one_burst(0.9, 0.5, 0.49, threshold=0.4) == (2, True)


def test_a_backdoor_still_there_is_censored_at_the_next_burst_and_at_the_end_of_the_run() -> None:
    values = [0.9, 0.8, 0.4, 0.7, 0.1, 0.9, 0.2, 0.6]
    bursts = [True, False, False, False, True, True, False, False]
    # the 0.1 is of the next burst, which does not end the first backdoor
    assert lifespans(values, bursts) == [(3, True), (2, True)]


def test_a_round_that_was_not_evaluated_shows_neither_life_nor_death() -> None:
    assert after_one_burst(0.9, nan, 0.8, nan, 0.2, nan) == (4, False)
    assert after_one_burst(0.9, nan, 0.8, nan) == (2, True)
    assert after_one_burst(nan, nan) == (0, True)


def test_without_censoring_the_mean_is_the_mean() -> None:
    assert restricted_mean([Lifespan(t, False) for t in (0, 3, 4, 4)]) == pytest.approx(11 / 4)


def test_a_censored_lifespan_does_not_pull_the_mean_to_where_it_was_cut_off() -> None:
    lives = [Lifespan(2, True), Lifespan(3, False), Lifespan(5, False)]
    # S = 1 up to 3, 1/2 up to 5: as if the censored one were the mean of those observed longer
    assert restricted_mean(lives) == 4  # the mean of the numbers is 10 / 3
    assert restricted_mean([*lives, Lifespan(0, True)]) == 4


def test_the_mean_goes_up_to_the_longest_observation() -> None:
    assert restricted_mean([Lifespan(8, True), Lifespan(8, True)]) == 8
    assert restricted_mean([Lifespan(3, False), Lifespan(8, True)]) == 5.5


def test_a_lifespan_that_ends_when_another_is_censored_ends_first() -> None:
    assert restricted_mean([Lifespan(2, True), Lifespan(2, False), Lifespan(4, False)]) == (
        pytest.approx(2 + 2 * 2 / 3)
    )


def test_without_a_round_after_a_burst_there_is_no_mean() -> None:
    assert isnan(restricted_mean([]))
    assert isnan(restricted_mean([Lifespan(0, True)]))


def test_a_burst_that_goes_on_has_no_lifespan_whatever_the_backdoor_accuracy() -> None:
    for value in (0.9, 0.1):
        mean, *counts = measured(BackdoorLifespan(), [value, value], [6, 6])
        assert isnan(mean)
        assert counts == [0, 0]
        assert lifespans([0.9, 0.1, value], [True, False, True]) == [(1, False)]


def test_a_burst_is_of_rounds_with_more_malicious_clients_than_the_majority() -> None:
    values, malicious = [0.9, 0.8, 0.7, 0.4, 0.3], [6, 5, 0, 1, 0]
    assert measured(BackdoorLifespan(majority=5), values, malicious) == [3, 1, 0]
    # with any malicious client: bursts of rounds 0 and 1, censored after 1, and of round 3, after 0
    assert measured(BackdoorLifespan(), values, malicious) == [0.5, 2, 1]


def test_lifespans_go_on_from_a_checkpoint() -> None:
    values, malicious = [0.9, 0.9, 0.8, 0.6, 0.4, 0.9, 0.3], [6, 6, 0, 0, 0, 6, 0]
    whole, first, second = (BackdoorLifespan(majority=5) for _ in range(3))
    measured(first, values[:4], malicious[:4])
    second.load_state_dict(first.state_dict())
    expected = measured(whole, values, malicious)
    assert expected == [2, 2, 0]
    assert measured(second, values[4:], malicious[4:]) == expected


def test_a_reset_metric_has_seen_no_round() -> None:
    metric = BackdoorLifespan()
    measured(metric, [0.9, 0.8], [6, 0])
    metric.reset()
    assert measured(metric, [0.9, 0.1], [6, 0]) == [1, 1, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 50}, "BackdoorLifespan: threshold must be <= 1, got threshold = 50"),
        ({"threshold": nan}, "threshold must be a finite number, got threshold = nan"),
        ({"majority": -1}, "BackdoorLifespan: majority must be >= 0, got majority = -1"),
    ],
)
def test_bad_settings_are_one_sentence(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BackdoorLifespan(**settings)
