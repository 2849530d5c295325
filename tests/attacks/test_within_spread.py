"""The backdoor inside the honest updates' spread."""

from __future__ import annotations

import math

import pytest
import torch
from attacks.rounds import a_round, sent_by
from hypothesis import given, settings
from hypothesis import strategies as st

import leadfl_pl as fl


def by_hand(delta: list[float], honest: list[list[float]], radius: str) -> list[float]:
    r = len(honest)
    mu = [sum(c) / r for c in zip(*honest, strict=True)]
    away = [math.dist(row, mu) for row in honest]
    rho = max(away) if radius == "max" else sum(away) / r
    length = math.dist(delta, mu)
    if length <= rho:
        return delta
    return [m + rho / length * (v - m) for v, m in zip(delta, mu, strict=True)]


@pytest.mark.parametrize("radius", ["max", "mean"])
def test_an_update_outside_is_moved_to_the_edge_and_one_inside_is_not(radius: str) -> None:
    updates, malicious, honest = a_round()
    far, near, _ = malicious.nonzero().flatten()
    updates[far] *= 20
    updates[near] = honest.mean(dim=0) + 1e-3
    sent = sent_by(fl.WithinHonestSpread(radius=radius), updates, malicious)
    for row, delta in zip(sent, updates[malicious], strict=True):
        assert row.tolist() == pytest.approx(by_hand(delta.tolist(), honest.tolist(), radius))
    assert torch.equal(sent[updates[malicious].norm(dim=1).argmin()], updates[near])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(2, 12), st.floats(0.01, 1000))
def test_no_attacker_is_further_from_the_mean_than_the_furthest_honest(seed, n, scale) -> None:
    updates, malicious, honest = a_round(n, n // 2, seed=seed)
    updates[malicious] *= scale
    mean = honest.mean(dim=0)
    sent = sent_by(fl.WithinHonestSpread(), updates, malicious)
    assert (sent - mean).norm(dim=1).max() <= (honest - mean).norm(dim=1).max() * (1 + 1e-9)
    again = sent_by(fl.WithinHonestSpread(), updates.masked_scatter(malicious[:, None], sent),
                    malicious)  # fmt: skip
    torch.testing.assert_close(again, sent)


def test_the_update_keeps_its_direction_from_the_mean() -> None:
    updates, malicious, honest = a_round()
    updates[malicious] *= 20
    mean = honest.mean(dim=0)
    sent = sent_by(fl.WithinHonestSpread(), updates, malicious)
    cosine = torch.cosine_similarity(sent - mean, updates[malicious] - mean)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_with_one_honest_client_his_update_is_copied() -> None:
    updates, malicious, honest = a_round(4, 3)
    sent = sent_by(fl.WithinHonestSpread(), updates, malicious)
    torch.testing.assert_close(sent, honest.expand_as(sent))


def test_without_honest_clients_nothing_is_projected() -> None:
    updates, malicious, _ = a_round(4, 4)
    assert torch.equal(sent_by(fl.WithinHonestSpread(), updates, malicious), updates)


def test_a_scaled_update_is_projected_after_scaling() -> None:
    updates, malicious, honest = a_round()
    attack = fl.WithinHonestSpread(fl.ModelReplacement(gamma=100))
    sent = sent_by(attack, updates, malicious)
    mean = honest.mean(dim=0)
    distance, spread = (sent - mean).norm(dim=1), (honest - mean).norm(dim=1).max()
    torch.testing.assert_close(distance, spread.expand_as(distance))


def test_an_unknown_radius_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="radius must be one of max, mean, got radius = med"):
        fl.WithinHonestSpread(radius="median")
