"""Inner product manipulation."""

from __future__ import annotations

import pytest
import torch
from attacks.rounds import a_round, sent_by

import leadfl_pl as fl


@pytest.mark.parametrize("omniscient", [True, False])
def test_every_attacker_sends_minus_epsilon_times_the_mean(omniscient: bool) -> None:
    updates, malicious, honest = a_round()
    sent = sent_by(fl.IPM(epsilon=0.3, omniscient=omniscient), updates, malicious)
    total = torch.zeros(updates.shape[1], dtype=updates.dtype)
    reference = honest if omniscient else updates[malicious]
    for row in reference:
        total -= 0.3 / len(reference) * row
    torch.testing.assert_close(sent, total.expand_as(sent))


def test_zero_sends_nothing() -> None:
    updates, malicious, _ = a_round()
    assert not sent_by(fl.IPM(epsilon=0), updates, malicious).any()


@pytest.mark.parametrize(("epsilon", "turned"), [(1.3, False), (1.4, True)])
def test_the_mean_turns_around_above_honest_over_malicious(epsilon: float, turned: bool) -> None:
    updates, malicious, honest = a_round(7, 3)  # 4 / 3
    sent = fl.IPM(epsilon=epsilon).corrupt(updates, malicious, torch.Generator())
    assert bool(sent.mean(dim=0) @ honest.mean(dim=0) < 0) == turned


@pytest.mark.parametrize(("epsilon", "wanted"), [(-0.1, ">= 0"), (float("inf"), "a finite number")])
def test_a_negative_factor_is_refused(epsilon: float, wanted: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"epsilon must be {wanted}, got epsilon = {epsilon}"):
        fl.IPM(epsilon=epsilon)
