"""Numbers outside sense and wrong return values are one sentence each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leadfl_pl import ConfigError
from leadfl_pl.core.errors import require_number, require_numbers, require_tensor


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), True, None, "1", [1], torch.ones(())]
)
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="A: k must be a finite number, got k = "):
        require_number("A", "k", value)


@pytest.mark.parametrize("value", [1.0, float("nan"), True, None])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="A: k must be a whole number, got k = "):
        require_number("A", "k", value, whole=True)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "wanted"),
    [
        ({"least": 0}, 0, -1e-9, ">= 0"),
        ({"above": 0}, 1e-9, 0, "> 0"),
        ({"most": 1}, 1, 1.1, "<= 1"),
        ({"below": 1}, 0.9, 1, "< 1"),
        ({}, 10**6, 1e30, "<= 1000000"),
        ({}, -(10**6), -(10**400), ">= -1000000"),
    ],
)
def test_the_bound_that_is_passed_is_named(bounds, inside, outside, wanted: str) -> None:
    require_number("A", "k", inside, **bounds)
    with pytest.raises(ConfigError, match=f"A: k must be {wanted}, got k = "):
        require_number("A", "k", outside, **bounds)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "k must be 2 whole numbers, got k = None"),
        (3, "k must be 2 whole numbers, got k = 3"),
        ([1, 2, 3], r"k must be 2 whole numbers, got k = \[1, 2, 3\]"),
        ([1, 2.5], "k must be a whole number, got k = 2.5"),
        ((1, -1), "k must be >= 0, got k = -1"),
    ],
)
def test_a_pair_is_two_whole_numbers(values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"A: {message}"):
        require_numbers("A", "k", values, least=0, length=2)


def test_numpys_numbers_are_numbers() -> None:
    require_number("A", "k", np.float32(0.5), least=0)
    require_number("A", "k", np.int64(5), whole=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"Mine.f must return a tensor of shape \(3, n\), got None"),
        ([torch.ones(3)], r"of shape \(3, n\), got list\(float32 of shape \(3,\)\)"),
        (torch.ones(3), r"of shape \(3, n\), got float32 of shape \(3,\)"),
        (torch.ones(2, 4), r"of shape \(3, n\), got float32 of shape \(2, 4\)"),
        (torch.ones(3, 4), r"a tensor of int64 or bool, got float32 of shape \(3, 4\)"),
    ],
)
def test_a_tensor_of_another_shape_or_dtype_is_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_tensor("Mine.f must return", value, (3, "n"), torch.int64, torch.bool)


def test_a_letter_stands_for_any_size() -> None:
    for n in (0, 4):
        require_tensor("Mine.f must return", torch.ones(3, n).bool(), (3, "n"), torch.bool)
