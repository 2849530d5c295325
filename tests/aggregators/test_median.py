"""The coordinate-wise median."""

from __future__ import annotations

import statistics

import pytest
import torch

from leadfl_pl import ConfigError, Median


@pytest.mark.parametrize("n", [1, 2, 5, 10, 11])
def test_each_coordinate_is_its_median(n: int) -> None:
    updates = torch.randn(n, 9000, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    coordinates = updates.T.tolist()
    expected = torch.tensor([statistics.median(c) for c in coordinates], dtype=torch.float64)
    torch.testing.assert_close(Median()(updates), expected, rtol=1e-15, atol=0)
    lower = torch.tensor([statistics.median_low(c) for c in coordinates], dtype=torch.float64)
    assert torch.equal(Median(formulation="released")(updates), lower)


def test_a_minority_moves_it_no_further_than_the_honest_values() -> None:
    honest = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    delta = Median()(torch.cat([honest, torch.full((5, 50), 1e6)]))
    assert bool((delta <= honest.amax(dim=0)).all())


def test_one_coordinate_leaves_the_callers_tensor_in_order() -> None:
    updates = torch.tensor([[3.0], [1.0], [2.0]])
    assert Median()(updates).tolist() == [2.0]
    assert updates.flatten().tolist() == [3.0, 1.0, 2.0]


def test_another_formulation_is_refused() -> None:
    with pytest.raises(ConfigError, match="formulation must be one of paper, released"):
        Median(formulation="upper")
