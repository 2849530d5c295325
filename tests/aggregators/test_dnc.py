"""DnC against NumPy's singular value decomposition of the updates themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leadfl_pl import ConfigError, DnC, FedAvg, Krum, MultiKrum, ServerContext
from leadfl_pl.aggregators.dnc import outlier_scores


def server(seed: int = 0) -> ServerContext:
    return ServerContext(torch.Generator().manual_seed(seed))


def dnc_from_the_paper(updates: np.ndarray, drawn: list[np.ndarray], cf: int) -> list[int]:
    """Shejwalkar and Houmansadr 2021, algorithm 2, with the coordinates of each trial given."""
    good = []
    for coordinates in drawn:
        sampled = updates[:, coordinates]
        mean = sampled.mean(axis=0)
        v = np.linalg.svd(sampled - mean)[2][0]
        scores = [np.dot(row - mean, v) ** 2 for row in sampled]
        good.append(set(np.argsort(scores)[: len(updates) - cf].tolist()))
    return sorted(set.intersection(*good))


def sample(seed: int, n: int = 11, d: int = 40) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 3 + torch.randn(n, d, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 3])
def test_it_is_the_papers_on_random_coordinates(iterations: int) -> None:
    for seed in range(5):
        updates, rng = sample(seed), torch.Generator().manual_seed(seed)
        drawn = [torch.randperm(40, generator=rng)[:15].numpy() for _ in range(iterations)]
        expected = dnc_from_the_paper(updates.numpy(), drawn, cf=3)
        rule = DnC(f=2, c=1.5, coordinates=15, iterations=iterations)
        delta, selected = rule.aggregate(updates, torch.ones(11), server(seed))
        assert selected.tolist() == expected
        np.testing.assert_allclose(delta.numpy(), updates.numpy()[expected].mean(axis=0))
        if iterations > 1:
            assert len(expected) < 11 - 3  # the trials differ


def test_scores_are_those_of_the_singular_vector() -> None:
    centred = sample(9) - sample(9).mean(dim=0)
    v = torch.linalg.svd(centred).Vh[0]
    torch.testing.assert_close(outlier_scores(sample(9)), (centred @ v).square())


def test_colluders_whom_krum_prefers_are_dropped() -> None:
    """A small common shift, less than the honest spread: near to each other, so near for Krum."""
    updates = sample(1, n=10, d=400) / 20
    updates[:3] = updates[3:].mean(dim=0) + 0.05
    assert max(Krum(f=3).select(updates).tolist()) < 3
    assert {0, 1, 2} <= set(MultiKrum(f=3).select(updates).tolist())
    selected = DnC(f=3).aggregate(updates, torch.ones(10), server()).selected
    assert min(selected.tolist()) >= 3


def test_nobody_assumed_byzantine_is_the_mean() -> None:
    torch.testing.assert_close(DnC(f=0)(sample(2)), FedAvg()(sample(2)))


def test_the_coordinates_are_of_the_servers_generator_and_differ_between_rounds() -> None:
    rule, updates = DnC(f=3, coordinates=5), sample(3)
    results = [rule(updates, server=server(seed)) for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert any(not torch.equal(results[0], other) for other in results[2:])


def test_trials_without_a_common_update_keep_the_model() -> None:
    rule = DnC(f=3, coordinates=2, iterations=60)
    delta, selected = rule.aggregate(sample(4, n=4), torch.ones(4), server())
    assert selected.tolist() == []
    assert not delta.any()


@pytest.mark.parametrize(("c", "f", "dropped"), [(0.28, 25, 7), (0.56, 25, 14), (0.5, 3, 2)])
def test_c_f_is_rounded_up_as_in_decimals(c: float, f: int, dropped: int) -> None:
    assert DnC(f=f, c=c).dropped == dropped


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"f": -1}, r"f must be >= 0, got f = -1"),
        ({"c": 0.0}, r"c must be > 0, got c = 0"),
        ({"coordinates": 0}, r"coordinates must be >= 1, got coordinates = 0"),
        ({"iterations": 0}, r"iterations must be >= 1, got iterations = 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            DnC(**settings)
    with pytest.raises(ConfigError, match=r"needs n >= cf \+ 1 = 12 updates for c = 1.1 .* n = 11"):
        DnC(f=10, c=1.1)(sample(0))
