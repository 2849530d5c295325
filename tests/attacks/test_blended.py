"""The blended backdoor."""

from __future__ import annotations

import pytest
import torch

import leadfl_pl as fl


def test_every_pixel_is_the_mean_of_image_and_pattern_weighted_by_alpha() -> None:
    x, attack = torch.rand(3, 2, 4, 5), fl.BlendedBackdoor(alpha=0.3)
    pattern = fl.BlendedBackdoor(alpha=1.0).stamp(torch.zeros(1, 2, 4, 5))[0]
    stamped = attack.stamp(x)
    for b in range(3):
        for c, row, column in torch.cartesian_prod(*map(torch.arange, (2, 4, 5))).tolist():
            by_hand = 0.7 * float(x[b, c, row, column]) + 0.3 * float(pattern[c, row, column])
            assert float(stamped[b, c, row, column]) == pytest.approx(by_hand, abs=1e-6)


def test_the_pattern_is_noise_over_the_whole_range_and_the_whole_image() -> None:
    attack = fl.BlendedBackdoor(alpha=1.0, low=-2, high=6)
    pattern = attack.stamp(torch.zeros(1, 3, 32, 32))
    assert -2 <= float(pattern.min()) < -1.9
    assert 5.9 < float(pattern.max()) <= 6
    assert float(pattern.mean()) == pytest.approx(2, abs=0.2)
    assert len(pattern.unique()) > 3000  # no channel repeats another


def test_the_pattern_depends_on_the_seed_and_on_nothing_else() -> None:
    x = torch.rand(4, 1, 8, 8)
    stamped = fl.BlendedBackdoor().stamp(x)
    torch.manual_seed(3)
    assert torch.equal(fl.BlendedBackdoor().stamp(x[2:]), stamped[2:])
    assert not torch.equal(fl.BlendedBackdoor(seed=1).stamp(x), stamped)
    wide = fl.BlendedBackdoor().stamp(x.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, stamped.double(), rtol=0, atol=1e-6)


def test_unlike_a_pixel_pattern_it_keeps_what_two_images_differ_in_but_fainter() -> None:
    x = torch.rand(2, 1, 8, 8)

    def difference(attack: fl.Attack) -> torch.Tensor:
        images = attack.trigger(x, torch.tensor([0, 1]))[0]
        return images[0] - images[1]

    torch.testing.assert_close(difference(fl.BlendedBackdoor(alpha=0.2)), 0.8 * (x[0] - x[1]))
    assert (difference(fl.PatternBackdoor()) == x[0] - x[1]).float().mean() > 0.7


def test_it_is_trained_on_beside_the_clean_batch() -> None:
    attack = fl.BlendedBackdoor(3, "fixed", 0.25)
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([3, 1])
    (blended, wanted), clean = attack.tasks(x, y)
    assert torch.equal(blended, attack.stamp(x))
    assert wanted.tolist() == [3, 3]
    assert torch.equal(clean[0], x)
    assert attack.balance(torch.ones(2), []).tolist() == [0.25, 0.75]
    assert attack.trigger(x, y)[2].tolist() == [False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0}, "alpha must be > 0, got alpha = 0"),
        ({"alpha": 1.5}, "alpha must be <= 1, got alpha = 1.5"),
        ({"low": 0.5, "high": 0.2}, "high must be >= 0.5, got high = 0.2"),
        ({"seed": -1}, "seed must be >= 0, got seed = -1"),
        ({"balance": "equal"}, "balance must be one of mgda, fixed, got balance = equal"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"BlendedBackdoor: {message}"):
        fl.BlendedBackdoor(**settings)


def test_a_target_that_the_data_lacks_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="BlendedBackdoor: target must be a class in"):
        fl.BlendedBackdoor(target=10).check((1, 8, 8), 10)
