"""RFA against Weiszfeld's algorithm on the points themselves, and against what a median must be."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import RFA, ConfigError, FedAvg
from leadfl_pl.aggregators import rfa
from leadfl_pl.core.distances import gram


def weiszfeld_on_points(points: torch.Tensor, alphas: torch.Tensor, nu: float) -> torch.Tensor:
    """Pillutla et al. 2022, algorithm 2, with the points at hand, to convergence.

    From the coordinate-wise median instead of the mean, else it takes too long where points lie
    far away.
    """
    points, alphas = points.double(), alphas.double() / alphas.sum()
    z = points.median(dim=0).values
    for _ in range(100_000):
        betas = alphas / (points - z).norm(dim=1).clamp_min(nu)
        new = betas @ points / betas.sum()
        if (new - z).norm() <= 1e-13 * (points - z).norm(dim=1).median():
            return new
        z = new
    raise AssertionError("the reference has not converged")


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


def far_points(d: int, share: float, far: float, seed: int = 0) -> torch.Tensor:
    """100 points, the share of them 1 .. 2 times ``far`` away, in about the same direction."""
    rng = torch.Generator().manual_seed(seed)
    points = torch.randn(100, d, generator=rng, dtype=torch.float64)
    distances = far * (1 + torch.rand(round(100 * share), 1, generator=rng, dtype=torch.float64))
    points[: len(distances)] += distances / d**0.5
    return points


FAR = [10.0, 1e3, 1e6, 1e8]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("share", [0.3, 0.4, 0.45, 0.49])
@pytest.mark.parametrize("d", [2, 50, 1000])
def test_it_converges_however_many_and_far_the_outliers(d: int, share: float, far: float) -> None:
    points = far_points(d, share, far)
    expected = weiszfeld_on_points(points, torch.ones(100), nu=1e-6)
    median = RFA()(points)
    assert (median - expected).norm() <= 1e-5 * (points - expected).norm(dim=1).median()
    pulls = (points - median) / (points - median).norm(dim=1, keepdim=True).clamp_min(1e-6)
    assert pulls.mean(dim=0).norm() <= 1e-6  # the tolerance


@pytest.mark.parametrize("far", FAR)
def test_two_matrices_of_inner_products_are_enough(far: float, monkeypatch) -> None:
    taken = []
    counted = lambda *args, **kwargs: taken.append(1) or gram(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(rfa, "gram", counted)
    RFA()(far_points(1000, 0.49, far))
    assert len(taken) <= (1 if far < 1e8 else 2)


def test_it_says_that_it_has_not_converged() -> None:
    message = r"not converged after max_iterations = 1: .* more than tolerance = 1e-06"
    with pytest.warns(RuntimeWarning, match=message):
        RFA(max_iterations=1)(far_points(50, 0.49, 1e8))


@pytest.mark.filterwarnings("error")
def test_points_on_a_line_and_repeated_points_have_their_median() -> None:
    line = torch.tensor([0.0, 1.0, 2.0, 7.0, 50.0])[:, None] * torch.tensor([1.0, 2.0, -2.0])
    torch.testing.assert_close(RFA()(line), line[2], atol=1e-5, rtol=0)
    repeated = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [9.0, -1.0]])
    torch.testing.assert_close(RFA()(repeated), repeated[1], atol=1e-5, rtol=0)


def test_within_nu_it_is_the_mean() -> None:
    points = 1e-3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(RFA(nu=1.0)(points), points.mean(dim=0))
    assert not torch.allclose(RFA()(points), points.mean(dim=0))


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
    median = RFA()(points, torch.tensor([60.0, 10.0, 10.0, 10.0]))
    torch.testing.assert_close(median, points[0], rtol=1e-4, atol=1e-4)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"nu must be > 0, got nu = 0"):
        RFA(nu=0.0)
    with pytest.raises(ConfigError, match="max_iterations must be >= 1, got max_iterations = 0"):
        RFA(max_iterations=0)
