"""Steps before a rule: norm clipping, nearest-neighbour mixing, and their composition."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import (
    ConfigError,
    FedAvg,
    FLTrust,
    Krum,
    Median,
    NearestNeighborMixing,
    NormClipping,
    PreAggregation,
    PreStep,
    SparseFed,
)
from leadfl_pl.core.describe import describe


def stack(n: int = 9) -> torch.Tensor:
    return torch.randn(n, 20, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def mixed_by_hand(updates: torch.Tensor, f: int) -> torch.Tensor:
    """Allouah et al. 2023, section 3, one update at a time."""
    rows = []
    for update in updates:
        order = sorted(range(len(updates)), key=lambda j: (updates[j] - update).norm().item())
        rows.append(updates[order[: len(updates) - f]].mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("f", [0, 1, 4])
def test_mixing_is_the_mean_of_the_nearest(f: int) -> None:
    updates = stack()
    mixed = NearestNeighborMixing(f)(updates)
    torch.testing.assert_close(mixed, mixed_by_hand(updates, f), rtol=1e-14, atol=1e-15)


def test_mixing_with_nobody_left_out_makes_all_equal_to_the_mean() -> None:
    updates = stack()
    torch.testing.assert_close(
        NearestNeighborMixing(f=0)(updates), updates.mean(dim=0).expand_as(updates)
    )


def test_clipping_shortens_the_long_ones_only() -> None:
    updates = stack()
    norms = updates.norm(dim=1)
    for max_norm in (4.0, None):
        bound = norms.quantile(0.5) if max_norm is None else max_norm
        expected = torch.stack([u * min(1.0, bound / u.norm().item()) for u in updates])
        torch.testing.assert_close(NormClipping(max_norm)(updates), expected)
    assert torch.equal(NormClipping(100.0)(updates), updates)
    assert NormClipping()(torch.zeros(3, 2)).tolist() == [[0.0, 0.0]] * 3


def test_the_rule_sees_what_the_steps_made_in_their_order() -> None:
    updates = stack()
    clip, mix = NormClipping(2.0), NearestNeighborMixing(f=3)
    torch.testing.assert_close(
        PreAggregation([clip, mix], Median())(updates), Median()(mix(clip(updates)))
    )
    one, other = (PreAggregation(s, Median())(updates) for s in ([clip, mix], [mix, clip]))
    assert not torch.allclose(one, other)
    chosen = PreAggregation([mix], Krum(f=2))
    assert chosen.select(updates).tolist() == Krum(f=2).select(mix(updates)).tolist()


def test_weights_memory_and_root_data_are_the_rules() -> None:
    updates, sizes = stack(), torch.arange(1.0, 10.0)
    step = NormClipping(1e6)
    torch.testing.assert_close(
        PreAggregation([step], FedAvg())(updates, sizes), FedAvg()(updates, sizes)
    )
    assert PreAggregation([step], FLTrust(root_size=7)).root_size == 7
    rule, again = (PreAggregation([step], SparseFed(k=2)) for _ in range(2))
    rule(updates)
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again(updates), rule(updates))


def test_a_checkpoint_knows_the_steps_and_the_rule() -> None:
    described = describe(PreAggregation([NormClipping(2.0)], Krum(f=3)))
    (step,) = [v for k, v in described["steps"].items() if k.isdecimal()]
    assert step["class"].endswith("NormClipping")
    assert step["max_norm"] == 2.0
    assert described["rule"]["class"].endswith("Krum")
    assert described["rule"]["f"] == 3


class Remembering(PreStep):
    """A step of a user's with a memory of (n, d)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.empty(0))

    def forward(self, updates: torch.Tensor) -> torch.Tensor:
        self.last = updates + (self.last if self.last.numel() else 0)
        return self.last


def test_a_step_may_remember() -> None:
    rule, again = (PreAggregation([Remembering()], Median()) for _ in range(2))
    rule(stack())
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again(stack()), rule(stack()))
    assert not torch.equal(again(stack()), Median()(stack()))


class FirstHalf(PreStep):
    """A step of a user's that loses coordinates."""

    def forward(self, updates: torch.Tensor) -> torch.Tensor:
        return updates[:, :10]


def test_a_step_that_changes_the_shape_is_named() -> None:
    message = r"FirstHalf.forward\(\) must give updates of shape \(9, 20\), .* shape \(9, 10\)"
    with pytest.raises(ConfigError, match=message):
        PreAggregation([FirstHalf()], FedAvg())(stack())


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="steps must be one or more steps"):
        PreAggregation([], FedAvg())
    with pytest.raises(ConfigError, match=r"needs n >= 2f \+ 1 = 7 updates for f = 3, got n = 6"):
        PreAggregation([NearestNeighborMixing(f=3)], FedAvg())(stack(6))
    with pytest.raises(ConfigError, match=r"Krum needs n >= 2f \+ 3 = 7 updates for f = 2"):
        PreAggregation([NormClipping(1.0)], Krum(f=2))(stack(6))
    with pytest.raises(ConfigError, match=r"max_norm must be > 0, got max_norm = -1"):
        NormClipping(-1)
