"""RFA against Weiszfeld's algorithm on the points themselves, and against what a median must be."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import RFA, ConfigError, FedAvg


def weiszfeld_on_points(points: torch.Tensor, alphas: torch.Tensor, nu: float) -> torch.Tensor:
    """Pillutla et al. 2022, algorithm 2, with the points at hand, to convergence."""
    points, alphas = points.double(), alphas.double() / alphas.sum()
    z = alphas @ points
    for _ in range(20_000):
        betas = torch.stack(
            [a / max(nu, (z - x).norm().item()) for a, x in zip(alphas, points, strict=True)]
        )
        new = betas @ points / betas.sum()
        if (new - z).norm() <= 1e-13:
            break
        z = new
    return z


@pytest.mark.parametrize(
    ("spread", "offset"), [(1.0, 0.0), (1e-4, 0.0), (1e-2, 10.0)], ids=["unit", "tiny", "offset"]
)
def test_it_is_where_weiszfeld_on_the_points_ends(spread: float, offset: float) -> None:
    rng = torch.Generator().manual_seed(1)
    points = offset + spread * torch.randn(11, 300, generator=rng, dtype=torch.float64)
    points[:4] += 5 * spread
    sizes = torch.randint(1, 9, (11,), generator=rng).double()
    expected = weiszfeld_on_points(points, sizes, nu=1e-6)
    error = (RFA()(points, sizes) - expected).norm()
    assert error <= 1e-5 * (points - expected).norm(dim=1).mean()
    assert (FedAvg()(points, sizes) - expected).norm() > 100 * error


def test_the_pulls_of_the_points_balance() -> None:
    points = torch.randn(9, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = RFA(tolerance=1e-12, max_iterations=10_000)(points)
    pull = sum((x - z) / (x - z).norm() for x in points)
    assert pull.norm() < 1e-8


def test_a_far_point_pulls_no_harder_than_a_near_one() -> None:
    points = torch.randn(9, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    near, far = points.clone(), points.clone()
    near[0], far[0] = 1e6, 1e18  # in the same direction
    torch.testing.assert_close(RFA()(near), RFA()(far), rtol=0, atol=1e-4)
    assert RFA()(far).norm() < 3.0


def test_more_than_half_the_weight_on_one_point_is_that_point() -> None:
    points = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    found = RFA()(points, torch.tensor([60.0, 10.0, 10.0, 10.0]))
    torch.testing.assert_close(found, points[0], rtol=1e-4, atol=1e-4)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="nu must be > 0, got nu = 0"):
        RFA(nu=0.0)
    with pytest.raises(ConfigError, match="max_iterations must be >= 1, got max_iterations = 0"):
        RFA(max_iterations=0)
