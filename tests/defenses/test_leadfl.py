"""LeadFL's corrected form: by hand, against autograd, and at its limits."""

from __future__ import annotations

import itertools

import pytest
import torch

from leadfl_pl import ConfigError, LeadFL, LocalStep, leadfl_gradient
from leadfl_pl.defenses.leadfl import Norm


def local_step(params: list[torch.Tensor], step: int, lr: float = 0.1) -> LocalStep:
    names = [f"layer{i}.{'weight' if i % 2 == 0 else 'bias'}" for i in range(len(params))]
    grads = [torch.zeros_like(p) for p in params]
    return LocalStep(names, params, grads, lr, step, 9, False, lambda: None, torch.Generator())


def run(defense: LeadFL, path: list[torch.Tensor], lr: float = 0.1) -> list[torch.Tensor]:
    """W_1, W_2, ... when the optimizer alone adds path[i + 1] - path[i] in local step i."""
    param = path[0].clone()
    names = ["layer0.weight"]
    state = defense.start(names, [param])
    seen = []
    for i, (before, after) in enumerate(itertools.pairwise(path)):
        param.add_(after - before)
        state = defense.after_step(local_step([param], i, lr), state)
        seen.append(param.clone())
    return seen


def test_two_local_steps_by_hand() -> None:
    # eta = 0.1, alpha = 0.5, q = 0.45, one tensor of two entries, gradients (1, 2) then (3, -1)
    # step 0: W_1 = (1, 1) - 0.1 (1, 2) = (0.9, 0.8), no regulariser
    # step 1: W~ = (0.9, 0.8) - 0.1 (3, -1) = (0.6, 0.9); dW = (-0.1, -0.2)
    #         eta H = W_1 - W~ + dW = (0.3, -0.1) + (-0.1, -0.2) = (0.2, -0.3)
    #         V = (0.8, 1.3); ||V|| = sqrt(0.64 + 1.69) = 1.526434
    #         V / ||V|| = (0.524097, 0.851658), clipped to (0.45, 0.45)
    #         W_2 = (0.6, 0.9) - 0.1 * 0.5 * (0.45, 0.45) = (0.5775, 0.8775)
    path = [torch.tensor(p) for p in ([1.0, 1.0], [0.9, 0.8], [0.6, 0.9])]
    first, second = run(LeadFL(alpha=0.5, clip=0.45), path)
    torch.testing.assert_close(first, torch.tensor([0.9, 0.8]))
    torch.testing.assert_close(second, torch.tensor([0.5775, 0.8775]))
    _, unclipped = run(LeadFL(alpha=0.5, clip=1.0), path)
    torch.testing.assert_close(unclipped, torch.tensor([0.573795, 0.857417]))
    _, squared = run(LeadFL(alpha=0.5, clip=1.0, norm="squared"), path)
    torch.testing.assert_close(squared, torch.tensor([0.6 - 0.04, 0.9 - 0.05]))


@pytest.mark.parametrize("norm", ["l2", "squared"])
def test_the_gradient_is_autograds(norm: Norm) -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), (2, 2, 3)]

    def draw(scale: float) -> list[torch.Tensor]:
        return [scale * torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]

    current, change, stepped = draw(1.0), draw(0.3), draw(1.0)
    leaves = [w.clone().requires_grad_() for w in stepped]
    total = torch.zeros((), dtype=torch.float64)
    for tilde, w, dw in zip(leaves, current, change, strict=True):
        eta_h = w - tilde + dw
        v = torch.eye(eta_h.numel(), dtype=torch.float64) - torch.diag(eta_h.flatten())
        v = v.diagonal()  # I - eta H~ restricted to its diagonal, as H~ is diagonal
        total = total + (v.norm() if norm == "l2" else 0.5 * v.square().sum())
    expected = torch.autograd.grad(total, leaves)
    clip = 0.2
    gradient, norms = leadfl_gradient(stepped, current, change, clip, norm)
    for r, g in zip(gradient, expected, strict=True):
        torch.testing.assert_close(r, g.clamp(-clip, clip), rtol=0, atol=1e-14)
    penalty = torch.stack(norms)
    penalty = penalty.sum() if norm == "l2" else 0.5 * penalty.square().sum()
    torch.testing.assert_close(penalty, total.detach())


def test_the_change_of_weights_includes_the_regularising_step() -> None:
    # the third local step sees dW = W_2 - W_1 with W_2 after the regulariser
    path = [torch.tensor([p]) for p in (1.0, 0.9, 0.8, 0.7)]
    defense = LeadFL(alpha=1.0, clip=2.0, norm="squared")
    w1, w2, w3 = (w.item() for w in run(defense, path))
    v2 = 1 - (w1 - (w1 - 0.1) + (w1 - 1.0))
    assert w2 == pytest.approx(w1 - 0.1 - 0.1 * v2)
    v3 = 1 - (w2 - (w2 - 0.1) + (w2 - w1))
    assert w3 == pytest.approx(w2 - 0.1 - 0.1 * v3)


def test_alpha_zero_is_plain_sgd() -> None:
    path = [torch.randn(6, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    param = path[0].clone()
    plain = [param.add_(b - a).clone() for a, b in itertools.pairwise(path)]
    for seen, expected in zip(run(LeadFL(alpha=0.0), path), plain, strict=True):
        assert torch.equal(seen, expected)


def test_weights_only_leaves_the_biases_alone() -> None:
    params = [torch.ones(3), torch.ones(2)]
    defense = LeadFL(parameters="weights")
    step = local_step(params, 0)
    state = defense.start(step.names, params)
    for i in range(2):
        state = defense.after_step(local_step(params, i), state)
    assert torch.equal(params[1], torch.ones(2))
    assert not torch.equal(params[0], torch.ones(3))


def test_the_logged_penalty_is_alpha_times_the_norm() -> None:
    path = [torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.8]), torch.tensor([0.6, 0.9])]
    param = path[0].clone()
    defense = LeadFL(alpha=0.5, clip=0.45)
    state = defense.start(["a.weight"], [param])
    assert defense.regulariser(state) is None
    for i, (a, b) in enumerate(itertools.pairwise(path)):
        param.add_(b - a)
        state = defense.after_step(local_step([param], i), state)
    penalty = defense.regulariser(state)
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.5 * (0.64 + 1.69) ** 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "alpha must be >= 0, got alpha = -0.1"),
        ({"alpha": float("nan")}, "alpha must be a finite number, got alpha = nan"),
        ({"alpha": 1e30}, r"alpha must be <= 1000000, got alpha = 1e\+30"),
        ({"formulation": "report"}, "formulation must be one of corrected, released"),
        ({"clip": 0.0}, r"clip must be > 0, got clip = 0\.0"),
        ({"clip": float("inf")}, "clip must be a finite number, got clip = inf"),
        ({"norm": "squared", "formulation": "released"}, "got norm = squared"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LeadFL(**settings)
