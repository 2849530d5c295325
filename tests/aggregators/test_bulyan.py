"""Bulyan against a loop written from the paper."""

from __future__ import annotations

import statistics

import pytest
import torch
from test_krum import krum_scores_from_the_paper, stacks

from leadfl_pl import Bulyan, ConfigError, MultiKrum


def bulyan_from_the_paper(updates: torch.Tensor, f: int) -> torch.Tensor:
    """El Mhamdi et al. 2018, section 4: Krum one at a time, then coordinate by coordinate."""
    n = len(updates)
    remaining, chosen = list(range(n)), []
    while len(chosen) < n - 2 * f:
        r = len(remaining)
        neighbours = min(max(1, r - f - 2), r - 1)
        # the helper sums n - f - 2 distances: give it the f that asks for ``neighbours``
        scores = krum_scores_from_the_paper(updates[remaining], r - 2 - neighbours)
        best = remaining[min(range(r), key=lambda i: (scores[i], i))]
        chosen.append(best)
        remaining.remove(best)
    beta = len(chosen) - 2 * f
    result = []
    for values in updates[chosen].T.tolist():
        median = statistics.median(values)
        nearest = sorted(values, key=lambda v: abs(v - median))[:beta]
        result.append(sum(nearest) / beta)
    return torch.tensor(result, dtype=updates.dtype)


@pytest.mark.parametrize("n", range(4, 31))
def test_the_aggregate_is_the_papers_for_every_valid_f(n: int) -> None:
    for name, updates in stacks(n).items():
        for f in range((n - 3) // 4 + 1):
            torch.testing.assert_close(
                Bulyan(f)(updates),
                bulyan_from_the_paper(updates, f),
                msg=lambda m, name=name, f=f: f"{name}, f = {f}: {m}",
            )


def test_no_byzantine_update_is_the_mean() -> None:
    updates = stacks(9)["random"]
    torch.testing.assert_close(Bulyan(f=0)(updates), updates.mean(dim=0))


def test_a_single_poisoned_coordinate_that_passes_krum_is_trimmed() -> None:
    rng = torch.Generator().manual_seed(3)
    updates = torch.randn(11, 500, generator=rng)
    updates[0] = updates[1:].mean(dim=0)  # closest to everybody, so Krum selects it ...
    updates[0, 7] = 8.0  # ... with one coordinate far out
    assert 0 in MultiKrum(f=2).select(updates)
    assert Bulyan(f=2)(updates)[7].abs() < 2.0


def test_permutation_and_translation() -> None:
    updates = stacks(15)["colluding"]
    permutation = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Bulyan(f=2)(updates[permutation]), Bulyan(f=2)(updates))
    torch.testing.assert_close(Bulyan(f=2)(updates + 3.0), Bulyan(f=2)(updates) + 3.0)


def test_too_few_updates_name_the_numbers() -> None:
    message = r"Bulyan needs n >= 4f \+ 3 = 7 updates for f = 1, got n = 6"
    with pytest.raises(ConfigError, match=message):
        Bulyan(f=1)(torch.randn(6, 2))
