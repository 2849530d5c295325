"""The 9-pixel backdoor and its two balances."""

from __future__ import annotations

import pytest
import torch
from conftest import Vectors

from leadfl_pl import ConfigError, PatternBackdoor
from leadfl_pl.attacks import mgda_weight


def test_the_pattern_sets_nine_pixels_at_row_3_column_23() -> None:
    x = torch.full((2, 1, 28, 28), 0.5)
    stamped = PatternBackdoor().stamp(x)
    rows, columns = (stamped[0, 0] != 0.5).nonzero().T
    assert len(rows) == 9
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 7, 23, 25)
    assert stamped[0, 0, 3, 23:26].tolist() == [1, 0, 1]
    assert stamped[0, 0, 5, 23:26].tolist() == [0.5, 0.5, 0]
    assert bool((x == 0.5).all())  # the caller's images are left alone


def test_the_released_batch_is_made_again(vectors: Vectors) -> None:
    attack = PatternBackdoor(high=2.8214867115, low=-0.4242129624)
    stamped = attack.stamp(vectors["mal/batches/x0"])
    torch.testing.assert_close(stamped, vectors["mal/poisoned_x0"], rtol=0, atol=1e-7)


def test_on_eight_by_eight_the_pattern_keeps_its_pixels_and_moves_inside() -> None:
    attack = PatternBackdoor()
    attack.check((1, 8, 8), 10)
    assert attack.corner(8, 8) == (1, 5)
    stamped = attack.stamp(torch.full((1, 1, 8, 8), 0.5))
    assert int((stamped != 0.5).sum()) == 9


def test_colour_images_get_it_on_every_channel() -> None:
    stamped = PatternBackdoor().stamp(torch.full((1, 3, 32, 32), 0.5))
    assert (stamped != 0.5).sum(dim=(0, 2, 3)).tolist() == [9, 9, 9]


def test_only_images_of_other_classes_count() -> None:
    attack = PatternBackdoor(target=8)
    _, target, mask = attack.trigger(torch.zeros(3, 1, 28, 28), torch.tensor([8, 1, 2]))
    assert target.tolist() == [8, 8, 8]
    assert mask.tolist() == [False, True, True]


def test_mgda_finds_the_shortest_convex_combination() -> None:
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        g1, g2 = (
            [
                torch.randn(4, 3, generator=rng, dtype=torch.float64) + offset,
                torch.randn(2, generator=rng, dtype=torch.float64),
            ]
            for offset in (0.5 * (seed % 3), 0.0)
        )
        l1, l2 = (
            torch.tensor(0.5 + seed, dtype=torch.float64),
            torch.tensor(2.0, dtype=torch.float64),
        )
        scale1, scale2 = min(l1.item(), 10) + 1e-5, 2.0 + 1e-5
        v1, v2 = (torch.cat([t.flatten() for t in g]) / s for g, s in ((g1, scale1), (g2, scale2)))
        shares = torch.linspace(0.001, 0.999, 99801, dtype=torch.float64)
        lengths = (shares.outer(v1) + (1 - shares).outer(v2)).norm(dim=1)
        best = shares[lengths.argmin()].item()
        assert mgda_weight(g1, g2, l1, l2).item() == pytest.approx(best, abs=2e-5)


def test_a_vanished_loss_gives_finite_weights() -> None:
    zero, some = [torch.zeros(3)], [torch.ones(3)]
    weight = mgda_weight(zero, some, torch.tensor(0.0), torch.tensor(1.0))
    assert weight.item() == pytest.approx(0.999)


def test_the_fixed_balance_is_fixed() -> None:
    attack = PatternBackdoor(balance="fixed", backdoor_weight=0.3)
    weights = attack.balance(torch.tensor([5.0, 0.1]), [])
    torch.testing.assert_close(weights, torch.tensor([0.3, 0.7]))


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (1, 4, 28), "pattern must fit the image, 4 x 28 pixels, got a pattern of 5 x 3"),
        ({"target": 10}, (1, 28, 28), r"target must be a class in 0 \.\. 9, got target = 10"),
        ({"target": None}, (1, 28, 28), r"target must be a class in 0 \.\. 9, got target = None"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict, shape: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PatternBackdoor(**settings).check(shape, 10)


NULLS = [[None, None], [None, None]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backdoor_weight": 0.0}, "backdoor_weight must be > 0, got backdoor_weight = 0.0"),
        ({"backdoor_weight": 1.5}, "backdoor_weight must be <= 1, got backdoor_weight = 1.5"),
        ({"high": float("inf")}, "high must be a finite number, got high = inf"),
        ({"low": -1e30}, r"low must be >= -1000000, got low = -1e\+30"),
        ({"position": (3, -1)}, "position must be >= 0, got position = -1"),
        ({"pattern": NULLS}, "not all of them null, got pattern = .*None, None"),
        ({"position": None}, "position must be 2 whole numbers, got position = None"),
        ({"pattern": None}, r"got pattern = \[\]"),
        ({"pattern": []}, r"got pattern = \[\]"),
        ({"pattern": [[1], [1, 0]]}, r"rows of one length .* got pattern = \[\[1\], \[1, 0\]\]"),
        ({"pattern": [[1, float("nan")]]}, r"got pattern = \[\[1, nan\]\]"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"PatternBackdoor: .*{message}"):
        PatternBackdoor(**settings)


@pytest.mark.parametrize("clients", [(), (3,)])
def test_the_weight_is_as_exact_in_mixed_precision(clients: tuple[int, ...]) -> None:
    first, second = ([torch.randn(*clients, 50)] for _ in range(2))
    losses = torch.rand(2, *clients)
    expected = mgda_weight(first, second, *losses)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mgda_weight(first, second, *losses), expected)
