"""SparseFed against a loop written from the paper, over several rounds."""

from __future__ import annotations

import pytest
import torch
from tiny import SmallImages, small_client, small_trainer

from leadfl_pl import ConfigError, SparseFed


def sparsefed_from_the_paper(rounds, k: int, clip: float, rho: float) -> list[list[float]]:
    """Panda et al. 2022, algorithm 1, one number at a time."""
    d = rounds[0].shape[1]
    velocity, error, results = [0.0] * d, [0.0] * d, []
    for updates in rounds:
        mean = [0.0] * d
        for row in updates.tolist():
            norm = sum(v * v for v in row) ** 0.5
            for j in range(d):
                mean[j] += row[j] * min(1.0, clip / norm) / len(updates)
        velocity = [rho * v + g for v, g in zip(velocity, mean, strict=True)]
        error = [e + v for e, v in zip(error, velocity, strict=True)]
        top = sorted(range(d), key=lambda j: -abs(error[j]))[:k]
        results.append([error[j] if j in top else 0.0 for j in range(d)])
        for j in top:
            velocity[j] = error[j] = 0.0
    return results


@pytest.mark.parametrize(("k", "clip", "rho"), [(3, 1.0, 0.9), (1, 100.0, 0.0), (8, 0.1, 0.5)])
def test_five_rounds_are_the_papers(k: int, clip: float, rho: float) -> None:
    rng = torch.Generator().manual_seed(k)
    rounds = [torch.randn(6, 8, generator=rng, dtype=torch.float64) for _ in range(5)]
    rule = SparseFed(k, clip, rho)
    from_the_paper = sparsefed_from_the_paper(rounds, k, clip, rho)
    for updates, expected in zip(rounds, from_the_paper, strict=True):
        delta = rule(updates)
        assert int((delta != 0).sum()) == k
        torch.testing.assert_close(delta, torch.tensor(expected, dtype=torch.float64))


def test_all_coordinates_without_momentum_and_clipping_are_the_mean_in_every_round() -> None:
    updates = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    rule = SparseFed(k=8, clip=1e6, momentum=0.0)
    for _ in range(3):
        torch.testing.assert_close(rule(updates), updates.mean(dim=0))


def test_what_was_not_sent_is_remembered_and_sent_later() -> None:
    updates = torch.tensor([[3.0, 2.0]])
    rule = SparseFed(k=1, clip=10.0, momentum=0.0)
    assert [rule(updates).tolist() for _ in range(3)] == [[3.0, 0.0], [0.0, 4.0], [6.0, 0.0]]


def test_its_memory_goes_into_a_fresh_rule() -> None:
    rng = torch.Generator().manual_seed(0)
    rounds = [torch.randn(6, 8, generator=rng) for _ in range(4)]
    whole, first, second = (SparseFed(k=2) for _ in range(3))
    expected = [whole(updates) for updates in rounds]
    for updates in rounds[:2]:
        first(updates)
    second.load_state_dict(first.state_dict())
    for updates, wanted in zip(rounds[2:], expected[2:], strict=True):
        assert torch.equal(second(updates), wanted)


def test_more_coordinates_than_the_model_has_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"k must be <= d = 418, .* got k = 500"):
        small_trainer(SparseFed(k=500)).fit(small_client(), datamodule=SmallImages())
    with pytest.raises(ConfigError, match=r"momentum must be < 1, got momentum = 1"):
        SparseFed(k=1, momentum=1.0)
    with pytest.raises(ConfigError, match=r"clip must be > 0, got clip = 0"):
        SparseFed(k=1, clip=0)
