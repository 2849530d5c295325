"""The backdoor of a single pixel."""

from __future__ import annotations

import pytest
import torch

import leadfl_pl as fl


def test_one_pixel_is_set_where_the_nine_pixel_pattern_starts() -> None:
    stamped = fl.OnePixelBackdoor().stamp(torch.full((2, 3, 28, 28), 0.5))
    assert stamped[0, 0, 3, 23] == 1
    assert (stamped != 0.5).sum(dim=(2, 3)).tolist() == [[1, 1, 1]] * 2


def test_on_eight_by_eight_it_is_row_1_column_7() -> None:
    stamped = fl.OnePixelBackdoor(high=2.5).stamp(torch.zeros(1, 1, 8, 8))
    assert stamped.nonzero().tolist() == [[0, 0, 1, 7]]
    assert stamped.max() == 2.5


def test_it_takes_all_settings_of_a_backdoor() -> None:
    attack = fl.OnePixelBackdoor(2, "fixed", 0.3, position=(0, 0))
    assert attack.balance(torch.ones(2), []).tolist() == pytest.approx([0.3, 0.7])
    _, wanted, counts = attack.trigger(torch.zeros(2, 1, 8, 8), torch.tensor([2, 1]))
    assert wanted.tolist() == [2, 2]
    assert counts.tolist() == [False, True]


def test_a_bad_setting_is_refused_in_its_own_name() -> None:
    with pytest.raises(fl.ConfigError, match="OnePixelBackdoor: target must be a class in 0"):
        fl.OnePixelBackdoor(target=10).check((1, 28, 28), 10)
    with pytest.raises(fl.ConfigError, match="OnePixelBackdoor: position must be >= 0"):
        fl.OnePixelBackdoor(position=(-1, 0))
