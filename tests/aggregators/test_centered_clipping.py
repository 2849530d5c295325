"""Centered clipping against a loop written from the paper, over several rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leadfl_pl import CenteredClipping, ConfigError, FedAvg, WeakDP


def centered_clipping_from_the_paper(
    rounds: list[np.ndarray], tau: float, iterations: int
) -> list[np.ndarray]:
    """Karimireddy et al. 2021, AGG(m_1, ..., m_n) started from the previous aggregate."""
    v, results = np.zeros(rounds[0].shape[1]), []
    for messages in rounds:
        for _ in range(iterations):
            total = np.zeros_like(v)
            for message in messages:
                distance = np.sqrt(((message - v) ** 2).sum())
                total += (message - v) * min(1.0, tau / distance)
            v = v + total / len(messages)
        results.append(v)
    return results


def rounds_of_updates(seed: int, count: int = 4) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [1 + torch.randn(6, 8, generator=rng, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize(("tau", "iterations"), [(1.0, 1), (0.1, 3), (4.0, 5)])
def test_four_rounds_are_the_papers(tau: float, iterations: int) -> None:
    rounds = rounds_of_updates(iterations)
    rule = CenteredClipping(tau, iterations)
    expected = centered_clipping_from_the_paper([u.numpy() for u in rounds], tau, iterations)
    for updates, v in zip(rounds, expected, strict=True):
        np.testing.assert_allclose(rule(updates).numpy(), v, rtol=1e-12)


def test_a_radius_that_nobody_leaves_is_the_mean_whatever_was_before() -> None:
    rule = CenteredClipping(tau=1e6)
    for updates in rounds_of_updates(0):
        torch.testing.assert_close(rule(updates), FedAvg()(updates))


def test_it_gets_to_where_honest_clients_agree_unlike_norm_clipping() -> None:
    honest = torch.tensor([[3.0, 4.0]]).repeat(7, 1)
    updates = torch.cat([honest, torch.full((3, 2), -1e6)])
    centered, clipped = CenteredClipping(tau=0.1), WeakDP(max_norm=0.1, noise=0.0)
    for _ in range(200):
        one, other = centered(updates), clipped(updates)
    assert (one - honest[0]).norm() < 0.1  # 7 pull back with their distance, 3 with tau each
    assert (other - honest[0]).norm() > 4.9


def test_what_becomes_of_its_result_does_not_change_its_memory() -> None:
    rule, updates = CenteredClipping(tau=0.5), torch.ones(3, 2)
    rule(updates).mul_(0)
    other = CenteredClipping(tau=0.5)
    other(updates)
    assert torch.equal(rule(updates), other(updates))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"CenteredClipping: tau must be > 0, got tau = 0"):
        CenteredClipping(tau=0)
    with pytest.raises(
        ConfigError, match=r"iterations must be a whole number, got iterations = 1.5"
    ):
        CenteredClipping(iterations=1.5)
