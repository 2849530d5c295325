"""Multi-Krum and Krum against a loop written from the paper."""

from __future__ import annotations

import math

import pytest
import torch

from leadfl_pl import ConfigError, Krum, MultiKrum


def krum_scores_from_the_paper(updates: torch.Tensor, f: int) -> list[float]:
    """Blanchard et al. 2017, section 4, one pair at a time."""
    n, rows = len(updates), updates.tolist()
    scores = []
    for i in range(n):
        distances = sorted(
            math.fsum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True))
            for j in range(n)
            if j != i
        )
        scores.append(math.fsum(distances[: n - f - 2]))
    return scores


def stacks(n: int) -> dict[str, torch.Tensor]:
    """Inputs that tell rules apart: spread, attackers that agree, a far offset, tiny spread."""
    rng = torch.Generator().manual_seed(n)
    random = torch.randn(n, 7, generator=rng, dtype=torch.float64)
    colluding = random.clone()
    colluding[: max(1, n // 4)] = 5.0 + 0.01 * random[: max(1, n // 4)]
    return {"random": random, "colluding": colluding, "offset": 1e3 + random, "tiny": 1e-4 * random}


@pytest.mark.parametrize("n", range(4, 31))
def test_selection_is_the_papers_for_every_valid_f(n: int) -> None:
    for updates in stacks(n).values():
        for f in range((n - 3) // 2 + 1):
            scores = krum_scores_from_the_paper(updates, f)
            order = sorted(range(n), key=lambda i: (scores[i], i))
            assert MultiKrum(f).select(updates).tolist() == order[: n - f]
            assert Krum(f).select(updates).tolist() == order[:1]
            chosen = MultiKrum(f, m=2)(updates)
            torch.testing.assert_close(chosen, updates[order[:2]].mean(dim=0))


def test_float32_updates_are_measured_in_float64() -> None:
    rng = torch.Generator().manual_seed(0)
    spread = torch.randn(10, 1000, generator=rng, dtype=torch.float64)
    updates = (1.0 + 1e-4 * spread).float()
    expected = krum_scores_from_the_paper(updates, f=1)
    order = sorted(range(10), key=lambda i: expected[i])
    assert MultiKrum(f=1, m=9).select(updates).tolist() == order[:9]


def test_permuting_the_clients_permutes_the_selection() -> None:
    updates = stacks(12)["colluding"]
    permutation = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    rule = MultiKrum(f=3, m=4)
    permuted = permutation[rule.select(updates[permutation])]
    assert permuted.tolist() == rule.select(updates).tolist()


def test_translation_moves_the_aggregate_and_not_the_selection() -> None:
    updates = stacks(12)["random"]
    rule, shift = MultiKrum(f=3, m=4), torch.linspace(-5, 5, 7, dtype=torch.float64)
    assert rule.select(updates + shift).tolist() == rule.select(updates).tolist()
    torch.testing.assert_close(rule(updates + shift), rule(updates) + shift)


def test_krum_is_not_the_mean_and_not_the_median() -> None:
    updates = torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.0, 0.3], [9.0, 1.0], [1.0, 9.0]])
    chosen = Krum(f=1)(updates)
    torch.testing.assert_close(chosen, updates[0])
    assert not torch.equal(chosen, updates.mean(dim=0))
    assert not torch.equal(chosen, updates.median(dim=0).values)


def test_identical_updates_give_that_update_and_the_first_clients() -> None:
    updates = torch.full((9, 3), 0.1)
    assert MultiKrum(f=2, m=3).select(updates).tolist() == [0, 1, 2]
    torch.testing.assert_close(MultiKrum(f=2)(updates), updates[0])


@pytest.mark.parametrize(
    ("rule", "n", "message"),
    [
        (MultiKrum(f=2), 6, r"MultiKrum needs n >= 2f \+ 3 = 7 updates for f = 2, got n = 6"),
        (Krum(f=4), 10, r"Krum needs n >= 2f \+ 3 = 11 updates for f = 4, got n = 10"),
        (MultiKrum(f=1, m=9), 9, r"m <= n - f = 8 for n = 9 and f = 1, got m = 9"),
    ],
)
def test_too_few_updates_name_the_numbers(rule: MultiKrum, n: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(torch.randn(n, 2))


def test_negative_f_and_zero_m_are_refused() -> None:
    with pytest.raises(ConfigError, match="f must be >= 0, got f = -1"):
        MultiKrum(f=-1)
    with pytest.raises(ConfigError, match="m must be >= 1, got m = 0"):
        MultiKrum(m=0)
