"""Malformed updates: each kind is rejected with a warning, or is an error that names n and f."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny import SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl
from leadfl_pl.aggregators.validation import LARGEST_NORM, fault_of, well_formed

D, B = 6, 2


def update(client: int, **changes) -> fl.ClientUpdate:
    rng = torch.Generator().manual_seed(client)
    whole = fl.ClientUpdate(
        client, torch.randn(D, generator=rng), torch.ones(B), 20, torch.tensor(1.0), torch.zeros(())
    )
    return whole._replace(**changes)


def poked(value: float) -> torch.Tensor:
    delta = torch.ones(D)
    delta[2] = value
    return delta


MALFORMED = {
    "NaN": (update(3, delta=poked(float("nan"))), "it has 1 entries that are not finite"),
    "Inf": (update(3, delta=poked(float("inf"))), "it has 1 entries that are not finite"),
    "-Inf": (update(3, delta=poked(-float("inf"))), "it has 1 entries that are not finite"),
    "1e30": (update(3, delta=poked(1e30)), r"its norm is beyond 1.8e\+19"),
    "shape": (update(3, delta=torch.ones(D + 1)), r"its delta has shape \(7,\), not \(6,\)"),
    "rank": (update(3, delta=torch.ones(1, D)), r"its delta has shape \(1, 6\), not \(6,\)"),
    "buffers": (update(3, buffers=poked(float("nan"))[1:3]), "entries that are not finite"),
    "buffer shape": (update(3, buffers=torch.ones(5)), r"its buffers has shape \(5,\)"),
    "no examples": (update(3, num_examples=0), "it is from 0 examples"),
    "fewer than none": (update(3, num_examples=-4), "it is from -4 examples"),
    "duplicate": (update(1), "it is the second one of this client"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_update_is_left_out_with_a_warning_that_names_it(kind: str) -> None:
    bad, reason = MALFORMED[kind]
    good = [update(c) for c in (0, 1, 2)]
    with pytest.warns(fl.RejectedUpdate, match=rf"client {bad.client_id} in round 8 .*{reason}"):
        kept = well_formed([*good, bad], 8, D, B)
    assert all(a is b for a, b in zip(kept, good, strict=True))


def test_well_formed_updates_pass_in_their_order_and_without_a_word() -> None:
    updates = [update(c) for c in (5, 0, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert well_formed(updates, 0, D, B) == updates
        assert well_formed([], 0, D, B) == []


def test_a_rejected_update_does_not_make_its_clients_good_one_a_second_one() -> None:
    bad, good = update(3, delta=poked(float("nan"))), update(3)
    with pytest.warns(fl.RejectedUpdate, match="not finite") as caught:
        kept = well_formed([bad, good], 0, D, B)
    assert len(caught) == 1
    assert kept == [good]


def test_a_large_but_sane_update_is_for_the_rule_to_judge() -> None:
    update = torch.tensor([1e19, 0.0])
    assert fault_of(update, 1) is None
    assert fault_of(update.double() * 2, 1) is not None
    assert pytest.approx(torch.finfo(torch.float32).max) == LARGEST_NORM**2


def test_too_few_that_are_left_name_n_and_f_and_how_many_were_rejected() -> None:
    updates = torch.randn(7, 4)
    updates[5] = float("nan")
    message = r"needs n >= 2f \+ 3 = 7 updates for f = 2, got n = 6, after 1 of 7 were left out"
    with (
        pytest.warns(fl.RejectedUpdate, match="row 5"),
        pytest.raises(fl.ConfigError, match=message),
    ):
        fl.MultiKrum(f=2)(updates)


def test_wrong_shapes_of_a_whole_stack_are_errors() -> None:
    with pytest.raises(ValueError, match=r"updates must have shape \(n, d\), got \(3,\)"):
        fl.FedAvg()(torch.ones(3))
    with pytest.raises(ValueError, match=r"weights must have shape \(3,\), .* got \(2,\)"):
        fl.FedAvg()(torch.ones(3, 2), torch.ones(2))


def test_state_dicts_with_other_keys_or_shapes_are_left_out() -> None:
    model = torch.nn.Linear(2, 1)
    right = {k: torch.ones_like(v) for k, v in model.state_dict().items()}
    states = {
        "right": right,
        "lacks": {"weight": right["weight"]},
        "extra": {**right, "scale": torch.ones(1)},
        "shape": {**right, "bias": torch.ones(2)},
        "order": dict(reversed(right.items())),
    }
    with pytest.warns(fl.RejectedUpdate) as caught:
        rows, clients = fl.stack_states(states, like=model.state_dict())
    assert clients == ["right", "order"]
    assert rows.tolist() == [[1.0, 1.0, 1.0]] * 2
    said = [str(w.message) for w in caught]
    assert "client lacks is rejected: it lacks bias" in said[0]
    assert "it has scale, which the model has not" in said[1]
    assert "bias has shape (2,), not (1,)" in said[2]


class Sabotage(fl.Attack):
    """Sends what the test says."""

    def __init__(self, value: float) -> None:
        self.value = value

    def corrupt(self, updates, malicious, generator):
        return torch.where(malicious[:, None], self.value, updates)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_in_a_federation_the_rest_goes_on_and_the_count_is_logged(value: float) -> None:
    client, report = small_client(), fl.RunReport()
    trainer = small_trainer(
        attack=Sabotage(value), schedule=fl.FixedSchedule(2), rounds=2, callbacks=[report]
    )
    with pytest.warns(fl.RejectedUpdate):
        trainer.fit(client, datamodule=SmallImages(batch_size=8))
    assert [row["round/rejected"] for row in report.rows] == [2, 2]
    assert [row["round/malicious_selected"] for row in report.rows] == [0, 0]
    assert bool(weights(client).isfinite().all())
    assert not torch.equal(weights(client), weights(small_client()))


def test_max_failures_must_be_a_count() -> None:
    with pytest.raises(fl.ConfigError, match="max_failures must be >= 0, got max_failures = -1"):
        small_trainer(federation={"max_failures": -1})
