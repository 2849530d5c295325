"""Neurotoxin: training only what the last server step moved little."""

from __future__ import annotations

import pytest
import torch
from tiny import NetWithBatchNorm, Sent, SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl
from leadfl_pl.attacks.neurotoxin import spared
from leadfl_pl.core.values import AttackerView


def view(last: list[torch.Tensor] | None) -> AttackerView:
    return AttackerView(1, 0, NetWithBatchNorm(), torch.rand(4, 1, 8, 8), torch.arange(4), last)


LAST = [torch.tensor([[1.0, -9.0], [0.1, 4.0]]), torch.tensor([-5.0, 0.0])]


def test_the_largest_coordinates_over_all_tensors_are_spared_from_training() -> None:
    masks = spared(LAST, share=0.5)  # |-9|, |-5| and |4| of six
    assert [m.tolist() for m in masks] == [[[True, False], [True, False]], [False, True]]


def test_the_gradient_is_zero_there_and_untouched_elsewhere() -> None:
    local = fl.Neurotoxin(fl.PatternBackdoor(), share=0.5).local(view(LAST))
    gradients = [torch.full((2, 2), 2.0), torch.full((2,), 3.0)]
    projected = local.project(gradients)
    assert [g.tolist() for g in projected] == [[[2.0, 0.0], [2.0, 0.0]], [0.0, 3.0]]


def test_round_0_and_a_share_of_zero_are_the_plain_attack() -> None:
    inner, gradients = fl.PatternBackdoor(), [torch.randn(2, 2), torch.randn(2)]
    for share, last in ((0.5, None), (0, LAST)):
        same = fl.Neurotoxin(inner, share=share).local(view(last)).project(gradients)
        assert all(torch.equal(a, b) for a, b in zip(same, gradients, strict=True))


def test_a_step_that_moved_nothing_spares_nothing() -> None:
    masks = spared([torch.zeros(4), torch.zeros(2)], share=0.5)
    assert all(bool(m.all()) for m in masks)


def test_the_inner_attacks_projection_and_local_form_are_kept() -> None:
    twice = fl.Neurotoxin(fl.Neurotoxin(fl.DBA(), share=0.2), share=0.5).local(view(LAST))
    ones = [torch.ones(2, 2), torch.ones(2)]
    assert [g.tolist() for g in twice.project(ones)] == [[[1, 0], [1, 0]], [0, 1]]
    images, _ = twice.tasks(torch.zeros(1, 1, 28, 28), torch.tensor([0]))[0]
    assert int(images.sum()) == 4  # one bar: the inner attack was bound to the client


def test_an_attackers_update_has_no_entry_where_the_last_step_was_largest() -> None:
    sent, client = Sent(), small_client()
    attack = fl.Neurotoxin(fl.PatternBackdoor(), share=0.3)
    trainer = small_trainer(None, attack, fl.FixedSchedule(2), [sent], rounds=2)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    first, second = sent.rounds
    step = first.mean(dim=0)  # all clients have 20 images
    largest = step.abs().topk(round(0.3 * len(step))).indices
    malicious = torch.tensor(trainer.federation.cohort(1).malicious)
    assert not second[malicious][:, largest].any()
    assert (second[~malicious][:, largest] != 0).float().mean() > 0.9
    assert (first[malicious][:, largest] != 0).float().mean() > 0.9
    assert bool(weights(client).isfinite().all())


@pytest.mark.parametrize(
    ("share", "wanted"), [(-0.1, ">= 0"), (1.0, "< 1"), (float("nan"), "a finite number")]
)
def test_a_share_out_of_range_is_refused(share: float, wanted: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"share must be {wanted}, got share = {share}"):
        fl.Neurotoxin(fl.PatternBackdoor(), share=share)
