"""RobustLR against a loop over the coordinates."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import ConfigError, FedAvg, RobustLR


def robust_lr_from_the_paper(
    updates: list[list[float]], sizes: list[float], theta: int
) -> list[float]:
    """Ozdayi et al. 2021, equation of the learning rate, one coordinate at a time."""
    step = []
    for j in range(len(updates[0])):
        signs = sum((row[j] > 0) - (row[j] < 0) for row in updates)
        mean = sum(n * row[j] for n, row in zip(sizes, updates, strict=True)) / sum(sizes)
        step.append(mean if abs(signs) >= theta else -mean)
    return step


@pytest.mark.parametrize("theta", [0, 1, 3, 4, 9])
def test_it_is_the_papers_with_zeros_counting_for_neither_side(theta: int) -> None:
    rng = torch.Generator().manual_seed(theta)
    updates = torch.randint(-2, 3, (9, 50), generator=rng).double()
    sizes = torch.arange(1.0, 10.0, dtype=torch.float64)
    expected = robust_lr_from_the_paper(updates.tolist(), sizes.tolist(), theta)
    delta = RobustLR(theta)(updates, sizes)
    torch.testing.assert_close(delta, torch.tensor(expected, dtype=torch.float64))


def test_a_threshold_of_zero_is_fedavg() -> None:
    updates, sizes = torch.randn(5, 9), torch.tensor([1.0, 2, 3, 4, 5])
    assert torch.equal(RobustLR(theta=0)(updates, sizes), FedAvg()(updates, sizes))


def test_what_a_minority_alone_wants_is_undone() -> None:
    """Five honest clients do not move the backdoor's coordinate; three attackers do."""
    updates = torch.cat([torch.tensor([[1.0, 0.0]]).repeat(5, 1), torch.tensor([[1.0, 5.0]] * 3)])
    assert FedAvg()(updates).tolist() == [1.0, 1.875]
    assert RobustLR(theta=4)(updates).tolist() == [1.0, -1.875]


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"RobustLR: theta must be >= 0, got theta = -1"):
        RobustLR(theta=-1)
    with pytest.raises(ConfigError, match=r"RobustLR needs n >= theta = 4 updates, .* got n = 3"):
        RobustLR(theta=4)(torch.ones(3, 2))
