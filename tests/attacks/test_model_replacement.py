"""Model replacement: the scaled update."""

from __future__ import annotations

import pytest
import torch
from attacks.rounds import a_round, sent_by

import leadfl_pl as fl


def test_the_attackers_update_is_multiplied() -> None:
    updates, malicious, _ = a_round()
    sent = sent_by(fl.ModelReplacement(gamma=2.5), updates, malicious)
    assert torch.equal(sent, 2.5 * updates[malicious])


def test_a_factor_of_one_is_the_plain_attack() -> None:
    updates, malicious, _ = a_round()
    assert torch.equal(
        sent_by(fl.ModelReplacement(gamma=1), updates, malicious), updates[malicious]
    )


@pytest.mark.parametrize("num_malicious", [1, 3, 7])
def test_by_default_the_mean_becomes_the_attackers_model(num_malicious: int) -> None:
    updates, malicious, _ = a_round(7, num_malicious)
    updates[~malicious] = 0  # converged: honest clients do not move
    sent = fl.ModelReplacement().corrupt(updates, malicious, torch.Generator())
    torch.testing.assert_close(sent.mean(dim=0), updates[malicious].mean(dim=0))


def test_what_another_attack_makes_of_the_update_is_multiplied() -> None:
    updates, malicious, honest = a_round()
    sent = sent_by(fl.ModelReplacement(fl.IPM(epsilon=0.5), gamma=4), updates, malicious)
    torch.testing.assert_close(sent, (-2 * honest.mean(dim=0)).expand_as(sent))


def test_local_training_and_trigger_are_the_inner_attacks() -> None:
    inner = fl.PatternBackdoor()
    attack = fl.ModelReplacement(inner)
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    assert torch.equal(attack.trigger(x, y)[0], inner.stamp(x))
    assert len(attack.tasks(x, y)) == 2
    with pytest.raises(fl.ConfigError, match="pattern must fit the image"):
        attack.check((1, 4, 4), 10)


@pytest.mark.parametrize(
    ("gamma", "wanted"),
    [(0, "> 0"), (-1, "> 0"), (10**30, "<= 1000000"), (float("nan"), "a finite")],
)
def test_a_factor_that_is_not_positive_and_sane_is_refused(gamma: float, wanted: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"gamma must be {wanted}.*, got gamma = {gamma}"):
        fl.ModelReplacement(gamma=gamma)
