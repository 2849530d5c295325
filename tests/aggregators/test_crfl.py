"""CRFL: the norm and the noise of the global model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leadfl_pl import CRFL, ConfigError, FedAvg, ServerContext, WeakDP


def server(theta: torch.Tensor, seed: int = 0) -> ServerContext:
    return ServerContext(torch.Generator().manual_seed(seed), model=theta)


def test_three_rounds_are_the_papers_with_the_schedule_of_its_mnist() -> None:
    """Xie et al. 2021, algorithm 1, with rho = 2 + 0.1 t for t = 1, 2, ..."""
    rng = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    theta, rule, clipped = torch.randn(9, generator=rng, dtype=torch.float64), CRFL(sigma=0.1), 0
    for t in range(1, 4):
        updates = torch.randn(3, 9, generator=rng, dtype=torch.float64) / 2
        moved = theta.numpy() + sizes.numpy() @ updates.numpy() / 6
        norm = np.sqrt((moved**2).sum())
        clipped += norm > 2 + 0.1 * t
        noise = torch.empty(9, dtype=torch.float64).normal_(
            generator=torch.Generator().manual_seed(t)
        )
        expected = moved / max(1.0, norm / (2 + 0.1 * t)) + 0.1 * noise.numpy()
        theta = theta + rule(updates, sizes, server(theta, t))
        np.testing.assert_allclose(theta.numpy(), expected, rtol=1e-12)
    assert clipped > 0


def test_a_norm_that_is_never_reached_and_no_noise_is_fedavg() -> None:
    updates, sizes = torch.randn(5, 9), torch.tensor([1.0, 2, 3, 4, 5])
    delta = CRFL(norm=1e6, sigma=0.0)(updates, sizes, server(torch.randn(9)))
    torch.testing.assert_close(delta, FedAvg()(updates, sizes), atol=1e-5, rtol=1e-5)


def test_many_small_updates_cannot_add_up_unlike_with_clipped_updates() -> None:
    updates = torch.full((3, 4), 0.1)
    rules = CRFL(norm=1.0, growth=0.0, sigma=0.0), WeakDP(max_norm=1.0, noise=0.0)
    models = [torch.zeros(4), torch.zeros(4)]
    for _ in range(100):
        models = [
            m + rule(updates, server=server(m)) for m, rule in zip(models, rules, strict=True)
        ]
    torch.testing.assert_close(models[0], torch.full((4,), 0.5))
    torch.testing.assert_close(models[1], torch.full((4,), 10.0))


def test_the_noise_has_its_standard_deviation_and_comes_from_the_round() -> None:
    def moved(seed: int) -> torch.Tensor:
        theta = torch.zeros(20_000)
        return CRFL(sigma=0.2)(torch.zeros(3, 20_000), server=server(theta, seed))

    assert moved(0).std().item() == pytest.approx(0.2, rel=0.02)
    assert torch.equal(moved(0), moved(0))
    assert not torch.equal(moved(0), moved(1))


def test_a_fresh_rule_with_its_memory_knows_the_round() -> None:
    first, second = (CRFL(norm=1.0, growth=1.0, sigma=0.0) for _ in range(2))
    updates, theta = torch.full((2, 4), 50.0), torch.zeros(4)
    norms = [first(updates, server=server(theta)).norm().item() for _ in range(2)]
    second.load_state_dict(first.state_dict())
    norms.append(second(updates, server=server(theta)).norm().item())
    assert norms == pytest.approx([2.0, 3.0, 4.0])


def test_what_cannot_work_is_refused() -> None:
    for settings, message in (
        ({"norm": 0.0}, r"CRFL: norm must be > 0, got norm = 0"),
        ({"growth": -1.0}, r"CRFL: growth must be >= 0, got growth = -1"),
        ({"sigma": -0.1}, r"CRFL: sigma must be >= 0, got sigma = -0.1"),
    ):
        with pytest.raises(ConfigError, match=message):
            CRFL(**settings)
    with pytest.raises(ConfigError, match=r"CRFL needs the global model, server\.model"):
        CRFL()(torch.ones(2, 3))
