"""A user's defense that returns something else than it must is named with its method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import leadfl_pl as fl
from leadfl_pl.defenses import check_defense, check_update

NAMES, PARAMS = ["a.weight", "a.bias"], [torch.ones(2, 3), torch.ones(2)]
DELTA = torch.ones(8)


class Mine(fl.ClientDefense):
    """A defense whose methods do what they are given."""

    def __init__(self, **methods: Any) -> None:
        self.methods = methods

    def start(self, names, params):
        return 0

    def after_step(self, step, state):
        return self.methods.get("after_step", lambda step: state + 1)(step)

    def finish(self, delta, generator):
        return self.methods.get("finish", lambda delta: delta)(delta)

    def regulariser(self, state):
        return self.methods.get("regulariser", lambda: None)()


def replace_first(step: fl.LocalStep) -> int:
    step.params[0] = step.params[0] * 0.9
    return 1


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"after_step": lambda step: None}, "Mine.after_step must return the next state, got None"),
        ({"after_step": replace_first}, "Mine.after_step must change step.params in place"),
        ({"regulariser": lambda: 0.5},
         r"Mine.regulariser must return None or a tensor of shape \(\), got float"),
        ({"regulariser": lambda: DELTA}, r"of shape \(\), got float32 of shape \(8,\)"),
        ({"finish": lambda delta: None},
         r"Mine.finish must return a tensor of shape \(8,\), got None"),
        ({"finish": lambda delta: [delta]}, r"of shape \(8,\), got list\(float32 of shape \(8,\)"),
        ({"finish": lambda delta: delta[:5]}, r"of shape \(8,\), got float32 of shape \(5,\)"),
        ({"finish": lambda delta: delta.double()}, "a tensor of float32, got float64"),
        ({"finish": lambda delta: delta / 0}, "Mine.finish must return finite numbers, got NaN"),
    ],
)  # fmt: skip
def test_the_method_is_named_with_what_it_returned(methods: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        check_defense(Mine(**methods), NAMES, PARAMS)


def test_what_is_right_passes_and_changes_nothing() -> None:
    state = torch.get_rng_state()
    check_defense(Mine(), NAMES, PARAMS)
    check_defense(
        Mine(regulariser=lambda: torch.tensor(0.5), finish=lambda d: d / 2), NAMES, PARAMS
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(bool((p == 1).all()) for p in PARAMS)


def test_it_sees_two_steps_and_knows_that_there_are_two() -> None:
    seen = []
    check_defense(Mine(after_step=lambda s: seen.append((s.step, s.num_steps)) or 1), NAMES, PARAMS)
    assert seen == [(0, 2), (1, 2)]


def test_an_update_that_training_made_infinite_is_not_the_defenses_fault() -> None:
    check_update(Mine(), DELTA / 0, DELTA / 0)
