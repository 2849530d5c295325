"""What is checked of every rule: its settings when it is made, its result in every round."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import leadfl_pl as fl
from leadfl_pl.aggregators.base import check_aggregated


def test_numpys_integers_are_integers() -> None:
    assert fl.Krum(f=np.int64(2)).f == 2


class Custom(fl.Aggregator):
    """A user's rule with given outputs."""

    def __init__(self, selected: object, combined: object = None) -> None:
        super().__init__()
        self.selected = selected
        self.combined = torch.zeros(4) if combined is None else combined

    def select(self, updates: torch.Tensor) -> torch.Tensor:
        return self.selected

    def combine(self, updates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.combined


def ints(*values: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("selected", "message"),
    [
        (None, r"of shape \(m,\) and dtype int64, got None"),
        ([0, 1], r"of shape \(m,\) and dtype int64, got list"),
        (ints(0, 1, dtype=torch.int32), r"got int32 of shape \(2,\)"),
        (torch.tensor([True, False, True]), r"got bool of shape \(3,\)"),
        (torch.tensor([0.0, 1.0]), r"got float32 of shape \(2,\)"),
        (torch.tensor(1), r"got int64 of shape \(\)"),
        (ints(0, 3), r"in 0 \.\. 2, got 0 \.\. 3"),
        (ints(-1, 1), r"in 0 \.\. 2, got -1 \.\. 1"),
        (ints(2, 0, 2), r"without repetition, got 2 more than once"),
    ],
)
def test_select_gives_distinct_rows_or_is_named(selected: object, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=rf"^Custom\.select\(\) must give indices .*{message}"):
        Custom(selected)(torch.ones(3, 4))


@pytest.mark.parametrize(
    ("combined", "got"),
    [
        ([0.0] * 4, "list"),
        (torch.zeros(3), r"float32 of shape \(3,\)"),
        (torch.zeros(1, 4), r"float32 of shape \(1, 4\)"),
        (ints(0, 0, 0, 0), r"int64 of shape \(4,\)"),
    ],
)
def test_combine_gives_one_update_or_is_named(combined: object, got: str) -> None:
    rule = Custom(ints(0, 1), combined)
    message = r"Custom\.combine\(\) must give an update of shape \(4,\) and floating dtype, got "
    for whole in (rule, fl.PreAggregation([fl.NormClipping()], rule)):
        with pytest.raises(fl.ConfigError, match=f"^{message}{got}"):
            whole(torch.ones(3, 4))


class Whole(Custom):
    """A user's rule that defines ``aggregate`` itself."""

    def aggregate(self, updates, weights, server):
        return self.selected


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, r"must give an Aggregated\(delta, selected\), got None"),
        (torch.zeros(4), r"must give an Aggregated\(delta, selected\), got float32 of shape"),
        ((torch.zeros(4), ints(0)), r"must give an Aggregated\(delta, selected\), got tuple"),
        (fl.Aggregated(torch.zeros(2), ints(0)), r"must give an update of shape \(4,\)"),
        (fl.Aggregated(torch.zeros(4), ints(3)), r"must give indices in 0 \.\. 2, got 3 \.\. 3"),
    ],
)
def test_aggregate_gives_an_aggregated_or_is_named(result: object, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=rf"^Whole\.aggregate\(\) {message}"):
        Whole(result)(torch.ones(3, 4))


def test_nobody_selected_and_entries_that_are_not_finite_are_for_others_to_judge() -> None:
    result = fl.Aggregated(torch.full((4,), float("nan")), ints())
    assert check_aggregated(Whole(result), result, n=3, d=4) is result


@pytest.mark.parametrize("rule", [fl.Median(), fl.FLAME(), fl.CenteredClipping(), fl.FedAvg()])
def test_updates_may_carry_a_graph_and_be_of_half_precision(rule: fl.Aggregator) -> None:
    updates = torch.randn(5, 4, requires_grad=True)
    assert not rule(updates).requires_grad
    large = torch.full((5, 4), 6e4, dtype=torch.float16)
    assert rule(large).dtype == torch.float16
    with pytest.raises(ValueError, match=r"updates must be of a floating dtype, got torch.int64"):
        rule(torch.ones(5, 4, dtype=torch.int64))
