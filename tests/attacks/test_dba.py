"""DBA: four bars, one for each attacker, all four in evaluation."""

from __future__ import annotations

import pytest
import torch
from tiny import NetWithBatchNorm

import leadfl_pl as fl
from leadfl_pl.core.values import AttackerView

BARS = [  # rows and columns, as the paper's code lists them for MNIST
    [(0, 0), (0, 1), (0, 2), (0, 3)],
    [(0, 6), (0, 7), (0, 8), (0, 9)],
    [(3, 0), (3, 1), (3, 2), (3, 3)],
    [(3, 6), (3, 7), (3, 8), (3, 9)],
]


def view(index: int) -> AttackerView:
    images, labels = torch.zeros(2, 1, 28, 28), torch.tensor([0, 1])
    return AttackerView(0, index, NetWithBatchNorm(), images, labels, None)


def pixels(images: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(p) for p in images[0, 0].nonzero().tolist()]


@pytest.mark.parametrize("index", range(6))
def test_malicious_client_j_trains_with_bar_j_mod_4(index: int) -> None:
    local = fl.DBA().local(view(index))
    (images, labels), (clean, _) = local.tasks(torch.zeros(2, 1, 28, 28), torch.tensor([0, 1]))
    assert pixels(images) == BARS[index % 4]
    assert labels.tolist() == [8, 8]
    assert not clean.any()


def test_evaluation_stamps_all_four_bars() -> None:
    images, wanted, counts = fl.DBA().trigger(torch.zeros(2, 1, 28, 28), torch.tensor([8, 1]))
    assert sorted(pixels(images)) == sorted(p for bar in BARS for p in bar)
    assert wanted.tolist() == [8, 8]
    assert counts.tolist() == [False, True]


def test_local_training_leaves_the_global_trigger_as_it_is() -> None:
    attack = fl.DBA()
    attack.local(view(0))
    assert int(attack.stamp(torch.zeros(1, 1, 28, 28)).sum()) == 16


def test_the_bars_are_not_rescaled_with_the_image() -> None:
    attack = fl.DBA(size=(1, 3), gap=(2, 2), shift=(1, 0))
    attack.check((1, 8, 8), 10)
    stamped = attack.bar(3).stamp(torch.zeros(1, 1, 8, 8))
    assert pixels(stamped) == [(4, 5), (4, 6), (4, 7)]


def test_the_local_attack_keeps_balance_weight_and_high() -> None:
    attack = fl.DBA(3, "fixed", 0.2, high=2.5).bar(1)
    assert attack.stamp(torch.zeros(1, 1, 28, 28)).max() == 2.5
    assert attack.balance(torch.ones(2), []).tolist() == pytest.approx([0.2, 0.8])
    assert attack.target == 3


def test_bars_without_a_gap_are_one_block() -> None:
    assert fl.DBA(size=(2, 2), gap=(0, 0)).pattern == ((1,) * 4,) * 4


def test_bars_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        fl.ConfigError,
        match=r"DBA: size = \[1, 4\], gap = \[2, 2\] and shift = \[0, 0\] must fit the image, "
        r"8 x 8 pixels, got a trigger that ends at 4 x 10",
    ):
        fl.DBA().check((1, 8, 8), 10)
    with pytest.raises(fl.ConfigError, match="ends at 28 x 30"):
        fl.DBA(shift=(24, 20)).check((1, 28, 28), 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 4)}, "DBA: size must be >= 1, got size = 0"),
        ({"gap": (2, -1)}, "DBA: gap must be >= 0, got gap = -1"),
        ({"shift": (-1, 0)}, "DBA: shift must be >= 0, got shift = -1"),
        ({"balance": "foo"}, "DBA: balance must be one of mgda, fixed"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        fl.DBA(**settings)
