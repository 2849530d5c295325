"""Distances that never change a selection, whatever the size, the spread and the offset."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl.core import distances
from leadfl_pl.core.distances import squared_distances


def pair_by_pair(updates: torch.Tensor) -> torch.Tensor:
    rows = updates.double()
    return torch.stack([(rows - row).square().sum(dim=1) for row in rows])


def stacks() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    random = torch.randn(12, 5000, generator=rng)
    colluding = random.clone()
    colluding[:4] = 1e3 + 1e-4 * random[:4]  # close together, and far from all others
    twins = random.clone()
    twins[3:6] = twins[0]
    huge = random.clone()
    huge[7] = 1e15
    return {
        "random": random,
        "tiny spread on an offset": (1.0 + 1e-4 * random.double()).float(),
        "colluding": colluding,
        "twins": twins,
        "all identical": random[:1].repeat(12, 1),
        "one huge": huge,
    }


@pytest.mark.parametrize("name", stacks())
def test_both_ways_are_the_distances_taken_pair_by_pair(name: str, monkeypatch) -> None:
    updates = stacks()[name]
    expected = pair_by_pair(updates)
    torch.testing.assert_close(squared_distances(updates), expected, rtol=1e-9, atol=0)
    monkeypatch.setattr(distances, "EXACT_WORK", 1 << 12)  # inner products, and small blocks
    large = squared_distances(updates)
    torch.testing.assert_close(large, expected, rtol=1e-9, atol=0)
    assert torch.equal(large, large.T)
    assert torch.equal(large == 0, expected == 0)


def test_float32_inner_products_of_the_rows_would_not_do() -> None:
    updates = stacks()["tiny spread on an offset"]
    products = updates @ updates.T
    naive = products.diagonal()[:, None] + products.diagonal() - 2 * products
    assert ((naive - pair_by_pair(updates)).abs() > 0.1 * pair_by_pair(updates)).any()
