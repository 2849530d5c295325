"""FL-WBC and LDP: what noise is added where."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import FLWBC, LDP, ClientDefense, ConfigError, LocalStep
from leadfl_pl.defenses.base import laplace_noise

NAMES = ["a.weight", "a.bias"]


def run(
    defense: ClientDefense, grads: list[list[torch.Tensor]], epoch_starts: tuple[int, ...] = (0,)
) -> list[list[torch.Tensor]]:
    """What each local step added to parameters that start at zero, lr 1."""
    params = [torch.zeros_like(g) for g in grads[0]]
    state = defense.start(NAMES, params)
    rng = torch.Generator().manual_seed(0)
    added = []
    for i, g in enumerate(grads):
        before = [p.clone() for p in params]
        step = LocalStep(NAMES, params, g, 1.0, i, len(grads), i in epoch_starts, lambda: None, rng)
        state = defense.after_step(step, state)
        added.append([p - b for p, b in zip(params, before, strict=True)])
    return added


GRADS = [[torch.full((50,), float(i)), torch.zeros(5)] for i in (0, 3, 3)]


def test_ldp_adds_noise_after_every_step_but_the_first() -> None:
    first, second, third = run(LDP(scale=0.5), GRADS)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in first)
    for step in (second, third):
        assert all(bool((x != 0).all()) for x in step)


def test_ldp_draws_noise_of_its_scale() -> None:
    flat = [[torch.zeros(20_000), torch.zeros(5)]] * 2
    (_, (noise, _)) = run(LDP(scale=0.5), flat)
    assert noise.abs().mean().item() == pytest.approx(0.5, rel=0.03)


def test_fl_wbc_keeps_noise_only_where_the_gradient_changed_less() -> None:
    """LDP draws the same noise: the gradient changes by 3, then not; that of the bias never."""
    steps = zip(run(FLWBC(scale=3.0), GRADS), run(LDP(scale=3.0), GRADS), strict=True)
    _, (changed, noise), (flat, all_of_it) = steps
    kept = torch.where(noise[0].abs() >= 3, noise[0], 0)
    assert 0 < int((kept != 0).sum()) < 50
    assert torch.equal(changed[0], kept)
    assert torch.equal(changed[1], noise[1])
    torch.testing.assert_close(flat, all_of_it)  # added to other parameters: rounded otherwise


def test_fl_wbc_without_a_mask_is_ldp() -> None:
    flat = [GRADS[0]] * 3  # gradients that never change mask nothing
    for a, b in zip(run(FLWBC(0.5), flat), run(LDP(0.5), flat), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", [FLWBC, LDP])
def test_zero_scale_is_plain_sgd(kind: type) -> None:
    for step in run(kind(scale=0.0), GRADS):
        assert all(torch.equal(x, torch.zeros_like(x)) for x in step)


@pytest.mark.parametrize("kind", [FLWBC, LDP])
def test_released_form_spares_biases_and_every_epochs_first_step(kind: type) -> None:
    flat = [GRADS[0]] * 4
    steps = run(kind(scale=0.5, formulation="released"), flat, epoch_starts=(0, 2))
    assert [bool((s[0] != 0).any()) for s in steps] == [False, True, False, True]
    assert all(torch.equal(s[1], torch.zeros(5)) for s in steps)
    paper = run(kind(scale=0.5), flat, epoch_starts=(0, 2))
    assert [bool((s[0] != 0).any()) for s in paper] == [False, True, True, True]


def test_the_noise_is_laplace() -> None:
    (noise,) = laplace_noise([torch.empty(200_000)], 0.3, torch.Generator().manual_seed(0))
    assert noise.abs().mean().item() == pytest.approx(0.3, rel=0.02)  # a normal's: 0.8 sd
    assert noise.var().item() == pytest.approx(2 * 0.3**2, rel=0.03)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.005)
    kurtosis = (noise**4).mean() / noise.var() ** 2
    assert kurtosis.item() == pytest.approx(6.0, rel=0.15)
    assert bool(noise.isfinite().all())


def test_the_noise_is_drawn_in_single_precision_whatever_the_trainers() -> None:
    like, draws = [torch.empty(100)], []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)  # as Lightning's precision does
        try:
            draws += laplace_noise(like, 0.3, torch.Generator().manual_seed(0))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("kind", [FLWBC, LDP])
@pytest.mark.parametrize(("scale", "wanted"), [(-1.0, ">= 0"), (float("inf"), "a finite number")])
def test_a_scale_that_is_no_scale_is_refused(kind: type, scale: float, wanted: str) -> None:
    message = f"{kind.__name__}: scale must be {wanted}, got scale = {scale}"
    with pytest.raises(ConfigError, match=message):
        kind(scale=scale)
