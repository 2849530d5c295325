"""PGD: malicious training inside a ball around the global model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NetWithBatchNorm, Sent, SmallImages, small_client, small_trainer
from torch import nn

import leadfl_pl as fl
from leadfl_pl.attacks.pgd import project_
from leadfl_pl.core.values import AttackerView
from leadfl_pl.federation.malicious_client import MaliciousClient


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.floats(0.01, 10))
def test_the_projection_is_the_nearest_point_of_the_ball(seed: int, radius: float) -> None:
    torch.manual_seed(seed)
    centre = [torch.randn(2, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    params = [c + torch.randn_like(c) for c in centre]
    before, c = (torch.cat([t.flatten() for t in ts]).tolist() for ts in (params, centre))
    project_(params, centre, radius)
    length = math.dist(before, c)
    by_hand = [
        b if length <= radius else m + radius / length * (b - m)
        for b, m in zip(before, c, strict=True)
    ]
    assert torch.cat([p.flatten() for p in params]).tolist() == pytest.approx(by_hand)


def sent(attack: fl.Attack, **federation) -> torch.Tensor:
    """What the attackers of one round send (4, d)."""
    heard = Sent()
    trainer = small_trainer(
        None, attack, fl.FixedSchedule(4), [heard], rounds=1, federation=federation,
        precision="64-true",
    )  # fmt: skip
    trainer.fit(small_client(fl.LeadFL()), datamodule=SmallImages(batch_size=8))
    return heard.rounds[0][torch.tensor(trainer.federation.cohort(0).malicious)]


PATTERN = fl.PatternBackdoor()


@pytest.mark.parametrize("federation", [{}, {"defended_attackers": True}])
def test_the_update_reaches_the_edge_of_the_ball_and_not_beyond(federation: dict) -> None:
    plain = sent(PATTERN, **federation).norm(dim=1)
    norms = sent(fl.PGD(PATTERN, epsilon=0.05), **federation).norm(dim=1)
    assert bool((plain > 0.1).all())
    torch.testing.assert_close(norms, torch.full_like(norms, 0.05), rtol=1e-6, atol=0)


def test_a_ball_that_nobody_leaves_is_the_plain_attack() -> None:
    assert torch.equal(sent(fl.PGD(PATTERN, epsilon=1e6)), sent(PATTERN))


def test_unlike_one_projection_at_the_end_it_trains_at_the_edge() -> None:
    plain = sent(PATTERN)
    at_the_end = plain * (0.05 / plain.norm(dim=1, keepdim=True))
    projected = sent(fl.PGD(PATTERN, epsilon=0.05))
    last_only = sent(fl.PGD(PATTERN, epsilon=0.05, every=1000))
    torch.testing.assert_close(last_only, at_the_end, rtol=1e-6, atol=1e-12)
    assert float((projected - at_the_end).norm(dim=1).min()) > 0.005


def test_model_replacement_scales_after_the_projection() -> None:
    norms = sent(fl.ModelReplacement(fl.PGD(PATTERN, epsilon=0.05), gamma=3)).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.15), rtol=1e-6, atol=0)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_local_training_is_a_loop_of_steps_and_projections(every: int) -> None:
    torch.manual_seed(0)
    net = nn.Linear(64, 10).double()
    theta = [p.detach().clone() for p in net.parameters()]
    batches = [(torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.arange(6)) for _ in range(5)]
    attack = fl.PGD(fl.LabelFlip(), epsilon=0.03, every=every)
    model = MaliciousClient(nn.Sequential(nn.Flatten(), net), attack, lr=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model.start_round(0, len(batches))
    for batch in batches:
        model.local_step(batch, optimizer, torch.Tensor.backward)
    w = [p.clone().requires_grad_() for p in theta]
    for i, (x, y) in enumerate(batches):
        loss = F.cross_entropy(x.flatten(1) @ w[0].T + w[1], 9 - y)
        grads = torch.autograd.grad(loss, w)
        moved = [(p - 0.1 * g).detach() for p, g in zip(w, grads, strict=True)]
        offset = [a - b for a, b in zip(moved, theta, strict=True)]
        norm = math.sqrt(sum(float((o * o).sum()) for o in offset))
        if i == 4 or (i + 1) % every == 0:
            factor = min(1.0, 0.03 / norm)
            moved = [b + factor * o for b, o in zip(theta, offset, strict=True)]
        w = [p.requires_grad_() for p in moved]
    for p, q in zip(net.parameters(), w, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_an_attack_inside_or_around_it_keeps_the_ball_and_its_local_form() -> None:
    view = AttackerView(
        1, 2, NetWithBatchNorm(), torch.rand(4, 1, 8, 8), torch.arange(4),
        [torch.randn_like(p) for p in NetWithBatchNorm().parameters()],
    )  # fmt: skip
    inside = fl.PGD(fl.DBA(size=(1, 3)), epsilon=0.5).local(view)
    around = fl.Neurotoxin(fl.PGD(PATTERN, epsilon=0.5)).local(view)
    for attack in (inside, around):
        params = [torch.ones(4)]
        attack.constrain(params, [torch.zeros(4)], 0, 9)
        assert params[0].tolist() == [0.25] * 4
    assert int(inside.tasks(torch.zeros(1, 1, 8, 8), torch.tensor([0]))[0][0].sum()) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "epsilon must be > 0, got epsilon = 0"),
        ({"epsilon": float("inf")}, "epsilon must be a finite number, got epsilon = inf"),
        ({"every": 0}, "every must be >= 1, got every = 0"),
        ({"every": 1.5}, "every must be a whole number, got every = 1.5"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"PGD: {message}"):
        fl.PGD(PATTERN, **settings)
