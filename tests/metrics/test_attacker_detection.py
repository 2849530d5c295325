"""A rule as a detector of attackers: counts over rounds, pairs within a round."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest
import torch

from leadfl_pl import AttackerDetection, ConfigError
from leadfl_pl.metrics import detection_rates


def numbers(metric: AttackerDetection) -> list[float]:
    return [round(value.item(), 6) for value in metric.compute()]


def test_counts_are_summed_over_rounds_and_rates_are_not_averaged() -> None:
    metric = AttackerDetection()
    # rejects one attacker of one, and one honest client of three
    metric.update([4, 7, 1, 3], [True, False, False, False], selected=[3, 1])
    # rejects none of three attackers, and no honest client
    metric.update([5, 4, 6, 9], [True, True, True, False], selected=[4, 5, 6, 9])
    precision, recall, false_positive_rate, auroc = numbers(metric)
    assert precision == 1 / 2
    assert recall == 1 / 4  # the mean of the rounds is 1 / 2
    assert false_positive_rate == 1 / 4  # the mean of the rounds is 1 / 6
    assert isnan(auroc)


def test_the_four_counts_are_told_apart() -> None:
    assert detection_rates(
        attackers=8, honest=5, attackers_rejected=6, honest_rejected=1
    ) == pytest.approx((6 / 7, 6 / 8, 1 / 5))


def test_a_rule_that_uses_every_update_detects_nobody() -> None:
    metric = AttackerDetection()
    metric.update([0, 1], [True, False], selected=[0, 1])
    precision, recall, false_positive_rate, _ = metric.compute()
    assert precision.isnan()
    assert recall == false_positive_rate == 0


def test_without_attackers_there_is_no_recall() -> None:
    metric = AttackerDetection()
    metric.update([0, 1], [False, False], selected=[0])
    precision, recall, false_positive_rate, _ = metric.compute()
    assert recall.isnan()
    assert precision == 0
    assert false_positive_rate == 0.5
    metric.reset()
    metric.update([0], [True], selected=[0])
    assert metric.compute().false_positive_rate.isnan()


def test_auroc_is_the_share_of_pairs_in_which_the_attacker_scores_higher() -> None:
    metric = AttackerDetection()
    truth, scores = [True, False, False, True], torch.tensor([3.0, 1.0, 3.0, 0.5])
    metric.update([0, 1, 2, 3], truth, selected=[1], scores=scores)
    # 3 > 1, 3 = 3, 0.5 < 1, 0.5 < 3
    assert numbers(metric)[3] == (1 + 0.5) / 4


def test_infinite_scores_are_a_tie() -> None:
    metric = AttackerDetection()
    metric.update([0, 1, 2], [True, False, False], selected=[2], scores=[inf, inf, -inf])
    assert numbers(metric)[3] == 3 / 4


def test_scores_are_compared_within_their_round_only() -> None:
    metric = AttackerDetection()
    metric.update([0, 1], [True, False], selected=[1], scores=[200.0, 100.0])
    metric.update([0, 1], [True, False], selected=[1], scores=[2.0, 1.0])
    assert numbers(metric)[3] == 1  # over all scores it is 3 / 4


def test_rounds_without_scores_count_for_the_rates_only() -> None:
    metric = AttackerDetection()
    metric.update([0, 1], [True, False], selected=[1], scores=[2.0, 1.0])
    metric.update([0, 1], [True, False], selected=[0])
    assert numbers(metric) == [0.5, 0.5, 0.5, 1.0]


def test_detection_goes_on_from_a_checkpoint() -> None:
    first, second = AttackerDetection(), AttackerDetection()
    first.update([0, 1, 2], [True, False, False], selected=[2], scores=[1.0, 2.0, 0.0])
    second.load_state_dict(first.state_dict())
    second.update([0, 1], [True, False], selected=[1], scores=[2.0, 1.0])
    assert numbers(second) == [round(n, 6) for n in (2 / 3, 1.0, 1 / 3, 2 / 3)]


def test_bad_rounds_are_one_sentence() -> None:
    metric = AttackerDetection()
    with pytest.raises(ConfigError, match=r"the same length, got 2, 1 and 2"):
        metric.update([0, 1], [True], selected=[])
    with pytest.raises(ConfigError, match=r"the same length, got 2, 2 and 3"):
        metric.update([0, 1], [True, False], selected=[], scores=[1.0, 2.0, nan])
    with pytest.raises(ConfigError, match=r"selected must be among client_ids, got \[5\] too"):
        metric.update([0, 1], [True, False], selected=[0, 5])
    assert metric.counts.sum() == 0
