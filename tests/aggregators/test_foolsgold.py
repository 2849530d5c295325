"""FoolsGold against a loop written from the paper, and what it remembers of whom."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import SmallImages, small_client, small_trainer

import leadfl_pl as fl
from leadfl_pl.aggregators.foolsgold import contribution_weights


def weights_from_the_paper(histories: np.ndarray, kappa: float) -> list[float]:
    """Fung et al. 2020, algorithm 1, one number at a time."""
    n = len(histories)
    cosines = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            if i != j:
                lengths = np.linalg.norm(histories[i]) * np.linalg.norm(histories[j])
                cosines[i][j] = float(histories[i] @ histories[j] / lengths)
    v = [max(row) for row in cosines]
    for i in range(n):
        for j in range(n):
            if v[j] > v[i]:
                cosines[i][j] *= v[i] / v[j]
    alphas = [min(1.0, max(0.0, 1 - max(row))) for row in cosines]
    largest = max(alphas)
    for i, alpha in enumerate(a / largest for a in alphas):
        logit = math.inf if alpha == 1 else math.log(alpha / (1 - alpha))
        alphas[i] = min(1.0, max(0.0, kappa * (logit + 0.5)))
    return alphas


def sample(seed: int, n: int = 7, d: int = 20) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.5 + torch.randn(n, d, generator=rng, dtype=torch.float64)


def of(*clients: int) -> fl.ServerContext:
    return fl.ServerContext(clients=torch.tensor(clients))


@pytest.mark.parametrize("kappa", [0.3, 1.0])
def test_weights_are_the_papers(kappa: float) -> None:
    between = 0
    for seed in range(10):
        expected = weights_from_the_paper(sample(seed).numpy(), kappa)
        np.testing.assert_allclose(contribution_weights(sample(seed), kappa), expected, rtol=1e-9)
        between += sum(0 < weight < 1 for weight in expected)
    assert between > 10


def test_rounds_are_weighed_by_the_sums_of_each_clients_updates() -> None:
    cohorts = [[3, 0, 5, 9, 1], [5, 2, 3, 0, 7], [7, 9, 3, 2, 1]]
    rule, sums = fl.FoolsGold(), {}
    for t, cohort in enumerate(cohorts):
        updates = sample(t, n=5)
        for client, row in zip(cohort, updates.numpy(), strict=True):
            sums[client] = sums.get(client, 0) + row
        alphas = weights_from_the_paper(np.stack([sums[client] for client in cohort]), 1.0)
        delta = rule(updates, server=of(*cohort))
        np.testing.assert_allclose(delta, alphas @ updates.numpy() / 5, rtol=1e-9)
    assert rule.history.shape == (len(sums), 20)


def test_sybils_that_differ_in_a_round_are_known_by_their_history() -> None:
    """Noise hides the common direction in one round, and cancels in the sum of many."""
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(400, generator=rng)
    rule = fl.FoolsGold()
    for _ in range(40):
        updates = 20 * torch.randn(6, 400, generator=rng)
        updates[:3] += 8 * target
        result = rule.aggregate(updates, torch.ones(6), of(0, 1, 2, 3, 4, 5))
    assert result.selected.tolist() == [3, 4, 5]
    assert contribution_weights(updates)[:3].min() > 0.5  # by the last round alone


def test_an_update_sent_twice_counts_for_nothing_and_the_others_go_on() -> None:
    updates = sample(0)
    updates[1] = 5 * updates[0]  # the same direction, at another length
    assert contribution_weights(updates)[:2].tolist() == [0.0, 0.0]
    assert contribution_weights(updates)[2:].min() > 0
    assert {0, 1} <= set(fl.FLAME().select(updates).tolist())


def test_parallel_updates_are_all_alike_whatever_their_lengths_and_keep_the_model() -> None:
    for seed in range(10):
        rng = torch.Generator().manual_seed(seed)
        lengths = 0.1 + torch.rand(7, 1, generator=rng, dtype=torch.float64)
        parallel = lengths * sample(seed)[0]
        delta, selected = fl.FoolsGold().aggregate(parallel, torch.ones(7), fl.ServerContext())
        assert selected.tolist() == []
        assert not delta.any()


def test_orthogonal_updates_are_their_mean() -> None:
    torch.testing.assert_close(fl.FoolsGold()(torch.eye(4)), torch.full((4,), 0.25))


def test_without_ids_nothing_is_remembered() -> None:
    rule, updates = fl.FoolsGold(), sample(0)
    assert torch.equal(rule(updates), rule(updates))
    assert rule.history.numel() == 0


def test_a_malformed_update_leaves_the_others_with_their_ids() -> None:
    rule, updates = fl.FoolsGold(), sample(0, n=4)
    updates[1, 0] = float("nan")
    with pytest.warns(fl.RejectedUpdate):
        rule(updates, server=of(4, 5, 6, 7))
    assert rule.clients.tolist() == [4, 6, 7]
    torch.testing.assert_close(rule.history, updates[[0, 2, 3]])


def test_a_federation_says_whose_the_updates_are() -> None:
    trainer = small_trainer(fl.FoolsGold(), rounds=2)
    trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
    rule = trainer.fit_loop.server.aggregator
    took_part = {c for t in range(2) for c in trainer.federation.cohort(t).client_ids}
    assert set(rule.clients.tolist()) == took_part
    assert len(took_part) > 7
    assert rule.history.shape == (len(took_part), 418)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"FoolsGold: kappa must be > 0, got kappa = 0"):
        fl.FoolsGold(kappa=0)
    with pytest.raises(ValueError, match=r"server.clients must have shape \(2,\), .* got \(3,\)"):
        fl.FoolsGold()(torch.eye(2), server=of(1, 2, 3))
