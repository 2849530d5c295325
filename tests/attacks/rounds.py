"""Rounds of updates for tests of attacks on updates."""

from __future__ import annotations

import torch
from torch import Tensor


def a_round(
    n: int = 7, num_malicious: int = 3, d: int = 11, seed: int = 0, dtype=torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Updates (n, d) with a common drift, a mask (n,) with attackers among others, the honest."""
    rng = torch.Generator().manual_seed(seed)
    updates = torch.randn(n, d, generator=rng, dtype=dtype) + torch.linspace(-1, 1, d, dtype=dtype)
    malicious = torch.zeros(n, dtype=torch.bool)
    malicious[torch.randperm(n, generator=rng)[:num_malicious]] = True
    return updates, malicious, updates[~malicious]


def sent_by(attack, updates: Tensor, malicious: Tensor, seed: int = 0) -> Tensor:
    """What the attackers send (m, d)."""
    sent = attack.corrupt(updates, malicious, torch.Generator().manual_seed(seed))
    assert torch.equal(sent[~malicious], updates[~malicious])
    return sent[malicious]
