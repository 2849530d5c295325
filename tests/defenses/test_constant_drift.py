"""Constant drift: LeadFL's step on a Hessian of zero."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import ConfigError, ConstantDrift, LocalStep, leadfl_gradient

NAMES = ["a.weight", "a.bias", "b.weight"]
SHAPES = [(3, 4), (2,), (40,)]


def moved(defense: ConstantDrift, step: int, stacked: int = 0) -> list[torch.Tensor]:
    """What the defense adds to zeros, lr 0.5."""
    params = [torch.zeros(*[stacked] * bool(stacked), *s, dtype=torch.float64) for s in SHAPES]
    rngs = [torch.Generator() for _ in range(stacked or 1)]
    local_step = LocalStep(
        NAMES, params, [], 0.5, step, 9, False, lambda: None, rngs[0], rngs if stacked else ()
    )
    defense.after_step(local_step, defense.start(NAMES, params))
    return params


@pytest.mark.parametrize("norm", ["l2", "squared"])
@pytest.mark.parametrize("clip", [0.2, 0.6, 2.0])
def test_it_is_the_step_of_leadfl_where_nothing_moved(norm, clip: float) -> None:
    zeros = [torch.zeros(s, dtype=torch.float64) for s in SHAPES]
    gradient, _ = leadfl_gradient(zeros, zeros, zeros, clip, norm)
    for found, r in zip(moved(ConstantDrift(0.3, clip, norm), 1), gradient, strict=True):
        torch.testing.assert_close(found, -0.5 * 0.3 * r)


def test_by_hand_it_is_one_over_the_root_of_the_entries_up_to_the_clip() -> None:
    # -0.5 * 2 * min(1 / sqrt(12), 1 / sqrt(2), 1 / sqrt(40); 0.25)
    drift = [float(p.unique()) for p in moved(ConstantDrift(2.0, clip=0.25), 1)]
    assert drift == pytest.approx([-0.25, -0.25, -0.158114], abs=1e-6)


def test_the_first_local_step_is_spared_as_in_leadfl() -> None:
    assert all(not p.any() for p in moved(ConstantDrift(), 0))


def test_clients_in_a_stack_drift_as_one_does_alone() -> None:
    stack = moved(ConstantDrift(clip=1.0), 1, stacked=5)
    for p, alone in zip(stack, moved(ConstantDrift(clip=1.0), 1), strict=True):
        assert torch.equal(p, alone.expand_as(p))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ConstantDrift: alpha must be >= 0, got alpha = -1"):
        ConstantDrift(alpha=-1.0)
    with pytest.raises(ConfigError, match=r"ConstantDrift: clip must be > 0, got clip = 0"):
        ConstantDrift(clip=0.0)
    with pytest.raises(ConfigError, match="ConstantDrift: norm must be one of l2, squared"):
        ConstantDrift(norm="l1")
    with pytest.raises(ConfigError, match="ConstantDrift: parameters must be one of all, weights"):
        ConstantDrift(parameters="matrices")
