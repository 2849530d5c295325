"""FLAME: which cluster, which bound, how much noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leadfl_pl import FLAME, ConfigError, MultiKrum, ServerContext


def two_directions(seed: int, n: int = 11, odd: int = 4) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    updates = torch.ones(n, 60) + 0.3 * torch.randn(n, 60, generator=rng)
    updates[:odd, :30] *= -1
    return updates


def flame_by_hand(updates: torch.Tensor, admitted: list[int]) -> np.ndarray:
    """Nguyen et al. 2022, algorithm 1, lines 8 to 14 without the noise."""
    norms = [float(np.linalg.norm(row)) for row in updates.numpy()]
    bound = float(np.median(norms))
    clipped = [updates[i].numpy() * min(1.0, bound / norms[i]) for i in admitted]
    return np.mean(clipped, axis=0)


def test_the_minority_direction_is_left_out_whatever_its_length() -> None:
    for seed in range(5):
        updates = two_directions(seed)
        scaled = updates * torch.linspace(0.2, 5.0, 11)[:, None]
        admitted = FLAME().select(updates).tolist()
        assert min(admitted) >= 4
        assert len(admitted) >= 6
        assert FLAME().select(scaled).tolist() == admitted
        assert min(MultiKrum(f=4, m=7).select(scaled).tolist()) < 4  # goes by length
        delta = FLAME(noise=0.0)(scaled)
        np.testing.assert_allclose(delta.numpy(), flame_by_hand(scaled, admitted), rtol=1e-5)


def test_the_bound_is_the_median_over_all_not_over_the_admitted() -> None:
    updates = two_directions(0, n=10)
    updates[:4] *= 0.01
    admitted = FLAME().select(updates).tolist()
    assert min(admitted) >= 4
    np.testing.assert_allclose(
        FLAME(noise=0.0)(updates).numpy(), flame_by_hand(updates, admitted), rtol=1e-5
    )


def test_the_noise_has_lambda_times_the_median_norm_as_standard_deviation() -> None:
    updates = torch.zeros(5, 20_000)
    updates[:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    server = ServerContext(torch.Generator().manual_seed(0))
    noisy = FLAME(noise=0.1)(updates, server=server)
    assert noisy[1:].std().item() == pytest.approx(0.1 * 3.0, rel=0.02)
    again = FLAME(noise=0.1)(updates, server=ServerContext(torch.Generator().manual_seed(0)))
    assert torch.equal(noisy, again)


def test_two_equal_halves_are_no_main_cluster_and_all_are_admitted() -> None:
    updates = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert FLAME().select(updates).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parallel_updates_are_one_cluster_whatever_their_lengths(dtype: torch.dtype) -> None:
    for seed in range(50):
        rng = torch.Generator().manual_seed(seed)
        lengths = 0.1 + torch.rand(7, 1, generator=rng, dtype=dtype)
        parallel = lengths * torch.randn(30, generator=rng, dtype=dtype)
        others = torch.randn(3, 30, generator=rng, dtype=dtype)
        assert FLAME().select(parallel).tolist() == list(range(7))
        assert FLAME().select(torch.cat([parallel, others])).tolist() == list(range(7))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"noise must be >= 0, got noise = -1"):
        FLAME(noise=-1.0)
    with pytest.raises(ConfigError, match="FLAME needs n >= 2 updates to cluster them, got n = 1"):
        FLAME()(torch.ones(1, 3))
