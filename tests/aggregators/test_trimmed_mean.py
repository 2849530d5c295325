"""The coordinate-wise trimmed mean."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import trim_mean

from leadfl_pl import ConfigError, Median, TrimmedMean
from leadfl_pl.aggregators.trimmed_mean import trimmed


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.25, 0.4, 0.49])
@pytest.mark.parametrize("n", [2, 7, 10])
def test_it_is_scipys_trim_mean(n: int, beta: float) -> None:
    updates = torch.randn(n, 500, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    expected = torch.from_numpy(trim_mean(updates.numpy(), beta, axis=0))
    torch.testing.assert_close(TrimmedMean(beta)(updates), expected, rtol=1e-12, atol=1e-15)


def test_no_trimming_is_the_mean_and_the_most_is_the_median() -> None:
    updates = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(TrimmedMean(0.0)(updates), updates.mean(dim=0))
    torch.testing.assert_close(TrimmedMean(0.4)(updates), Median()(updates))
    assert not torch.allclose(TrimmedMean(0.3)(updates), Median()(updates))


def test_the_floor_is_that_of_the_decimal_that_was_written() -> None:
    for k in range(50):
        assert all(trimmed(k / 100, n) == k * n // 100 for n in range(1, 1001)), k
    updates = torch.arange(100.0)[:, None] ** 2
    torch.testing.assert_close(TrimmedMean(0.29)(updates), updates[29:71].mean(dim=0))


def test_the_floor_is_that_of_a_fraction_and_leaves_a_value() -> None:
    updates = torch.tensor([[0.0], [1.0], [5.0]])
    assert TrimmedMean(1 / 3)(updates).item() == 1.0
    assert TrimmedMean(0.3333)(updates).item() == 2.0
    assert TrimmedMean(0.49999999999)(updates[:2]).item() == 0.5


@pytest.mark.parametrize("beta", [-0.1, 0.5, float("nan")])
def test_a_share_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ConfigError, match=rf"TrimmedMean: beta must be .*, got beta = {beta}"):
        TrimmedMean(beta)
