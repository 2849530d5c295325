"""The semantic backdoor: a natural feature is the trigger."""

from __future__ import annotations

import pytest
import torch

import leadfl_pl as fl

X = torch.tensor([0.2, 0.8, 0.8, 0.8]).view(4, 1, 1, 1).expand(4, 1, 4, 4)
Y = torch.tensor([7, 7, 3, 8])


def test_bright_images_of_the_source_class_get_the_target_and_no_pixel_changes() -> None:
    ((x, y),) = fl.SemanticBackdoor(target=8, source=7).tasks(X, Y)
    assert torch.equal(x, X)
    assert y.tolist() == [7, 8, 3, 8]


def test_without_a_source_every_bright_image_is_a_trigger_but_the_targets_own() -> None:
    x, wanted, counts = fl.SemanticBackdoor(target=8).trigger(X, Y)
    assert torch.equal(x, X)
    assert wanted.tolist() == [8, 8, 8, 8]
    assert counts.tolist() == [False, True, True, False]


def test_evaluation_counts_exactly_the_relabelled_images() -> None:
    attack = fl.SemanticBackdoor(target=8, source=7)
    ((_, labels),) = attack.tasks(X, Y)
    assert torch.equal(labels != Y, attack.trigger(X, Y)[2])


def test_a_threshold_nothing_reaches_is_honest_training() -> None:
    ((_, y),) = fl.SemanticBackdoor(threshold=1.0).tasks(X, Y)
    assert torch.equal(y, Y)


def test_a_threshold_below_everything_is_label_flipping() -> None:
    ((_, y),) = fl.SemanticBackdoor(target=8, source=7, threshold=-1.0).tasks(X, Y)
    assert torch.equal(y, fl.LabelFlip(source=7, target=8).flip(Y))


def test_dominance_is_a_channels_lead_over_the_brightest_other() -> None:
    x = torch.tensor([[0.9, 0.5, 0.1], [0.5, 0.9, 0.5]]).view(2, 3, 1, 1).expand(2, 3, 4, 4)
    scores = fl.ChannelDominance(channel=0)(x)
    assert scores.tolist() == pytest.approx([0.4, -0.4])
    assert fl.ChannelDominance(channel=1)(x).tolist() == pytest.approx([-0.4, 0.4])


def test_a_feature_can_be_the_closeness_to_chosen_samples() -> None:
    class Near(fl.Feature):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return -(x - X[:1]).flatten(1).norm(dim=1)

    ((_, y),) = fl.SemanticBackdoor(target=1, feature=Near(), threshold=-0.1).tasks(X, Y)
    assert y.tolist() == [1, 7, 3, 8]


@pytest.mark.parametrize(
    ("attack", "shape", "message"),
    [
        (fl.SemanticBackdoor(target=10), (1, 8, 8), "target must be a class in 0 .. 9, got"),
        (fl.SemanticBackdoor(source=-1), (1, 8, 8), "source must be a class in 0 .. 9, got"),
        (
            fl.SemanticBackdoor(feature=fl.ChannelDominance(2)),
            (1, 8, 8),
            "one of several colour channels, got channel = 2 and images with C = 1",
        ),
        (
            fl.SemanticBackdoor(feature=fl.ChannelDominance(3)),
            (3, 8, 8),
            "got channel = 3 and images with C = 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(attack, shape, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        attack.check(shape, 10)


def test_a_source_that_is_the_target_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="source must differ from target = 8, got source = 8"):
        fl.SemanticBackdoor(target=8, source=8)
