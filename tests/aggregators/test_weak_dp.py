"""Norm clipping with weak noise."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import ConfigError, FedAvg, ServerContext, WeakDP


def test_it_is_the_weighted_mean_of_the_clipped_updates() -> None:
    updates = torch.randn(7, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = torch.tensor([1.0, 2, 3, 4, 5, 6, 7])
    expected = (
        sum(
            s * row * min(1.0, 4.0 / row.norm().item())
            for s, row in zip(sizes, updates, strict=True)
        )
        / sizes.sum()
    )
    assert (updates.norm(dim=1) > 4.0).any()
    torch.testing.assert_close(WeakDP(max_norm=4.0, noise=0.0)(updates, sizes), expected)


def test_a_bound_that_nobody_reaches_and_no_noise_is_fedavg() -> None:
    updates, sizes = torch.randn(5, 9), torch.tensor([1.0, 2, 3, 4, 5])
    delta = WeakDP(max_norm=1e6, noise=0.0)(updates, sizes)
    torch.testing.assert_close(delta, FedAvg()(updates, sizes))


def test_the_noise_has_its_standard_deviation_and_comes_from_the_round() -> None:
    updates = torch.zeros(3, 20_000)

    def noise(seed: int) -> torch.Tensor:
        return WeakDP(noise=0.2)(updates, server=ServerContext(torch.Generator().manual_seed(seed)))

    assert noise(0).std().item() == pytest.approx(0.2, rel=0.02)
    assert torch.equal(noise(0), noise(0))
    assert not torch.equal(noise(0), noise(1))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_norm must be > 0, got max_norm = 0"):
        WeakDP(max_norm=0.0)
    with pytest.raises(ConfigError, match=r"noise must be a finite number, got noise = nan"):
        WeakDP(noise=float("nan"))
