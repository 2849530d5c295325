"""The server rejects, aggregates and steps, and says what became of the round."""

from __future__ import annotations

import pytest
import torch
from tiny import NetWithBatchNorm

import leadfl_pl as fl
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.federation.server import FailedRoundsError, Server

COHORT = fl.Cohort(0, (7, 4, 9), (False, True, False))


def server(aggregator: fl.Aggregator | None = None, **settings) -> Server:
    schedule = fl.RandomSchedule()
    federation = fl.Federation(
        aggregator or fl.FedAvg(), schedule, None, 10, 5, 3, local_epochs=1, **settings
    )
    return Server(federation, torch.device("cpu"))


def updates(vector: ModelVector, *values: float) -> list[fl.ClientUpdate]:
    """Updates of the cohort with one value in every coordinate, and ten times it in the buffers."""
    one = torch.tensor(1.0)
    return [
        fl.ClientUpdate(
            c, torch.full((vector.d,), v), torch.full((vector.b,), 10 * v), 20, v * one, one
        )
        for c, v in zip(COHORT.client_ids, values, strict=True)
    ]


def test_a_step_moves_parameters_by_the_aggregate_and_buffers_to_the_mean_of_the_selected() -> None:
    vector = ModelVector(NetWithBatchNorm())
    theta = vector.read()
    result = server(fl.Krum(f=0), server_lr=0.5).step(
        updates(vector, 1.0, 1.1, 9.0), COHORT, vector
    )
    assert result.selected == (7,)
    assert torch.equal(vector.read(), theta + 0.5)
    assert torch.equal(vector.read_buffers(), torch.full((vector.b,), 10.0))


def test_the_result_counts_who_was_sampled_selected_rejected_and_failed() -> None:
    vector = ModelVector(NetWithBatchNorm())
    sent = updates(vector, 1.0, float("nan"), 3.0)[:2]  # the third client's training failed
    with pytest.warns(fl.RejectedUpdate, match="client 4 in round 0"):
        result = server().step(sent, COHORT, vector)
    assert (result.sent, result.received, result.selected) == ((7, 4), (7,), (7,))
    numbers = {name: float(value) for name, value in result.metrics().items()}
    assert numbers == {
        "round/malicious_sampled": 1, "round/malicious_selected": 0, "round/selected": 1,
        "round/rejected": 1, "round/failed": 1, "round/update_norm": pytest.approx(vector.d**0.5),
        "train/loss": 1.0, "train/regulariser": 1.0,
    }  # fmt: skip


def test_the_loss_is_the_mean_of_all_and_the_regulariser_that_of_honest_clients() -> None:
    vector = ModelVector(NetWithBatchNorm())
    sent = [
        update._replace(loss=torch.tensor(loss), regulariser=torch.tensor(penalty))
        for update, loss, penalty in zip(
            updates(vector, 1.0, 1.0, 1.0), (1.0, 2.0, 6.0), (1.0, 9.0, 3.0), strict=True
        )  # the second one is malicious
    ]
    metrics = server().step(sent, COHORT, vector).metrics()
    assert float(metrics["train/loss"]) == 3
    assert float(metrics["train/regulariser"]) == 2


def test_attackers_that_the_rule_selected_are_counted() -> None:
    vector = ModelVector(NetWithBatchNorm())
    result = server().step(updates(vector, 1.0, 1.0, 1.0), COHORT, vector)
    assert float(result.metrics()["round/malicious_selected"]) == 1
    assert "round/failed" not in result.metrics()


def test_too_few_updates_keep_the_model_until_it_has_happened_too_often() -> None:
    vector = ModelVector(NetWithBatchNorm())
    theta, at_work = vector.read(), server(fl.Krum(f=0), max_failures=1)
    with pytest.warns(UserWarning, match="round 0 keeps the old model: Krum needs n >= 2f"):
        result = at_work.step(updates(vector, 1.0, 1.0, 1.0)[:2], COHORT, vector)
    assert torch.equal(vector.read(), theta)
    assert result.selected == ()
    with pytest.raises(FailedRoundsError, match="max_failures = 1"):
        at_work.step([], COHORT, vector)


def test_what_it_remembers_travels_in_its_state() -> None:
    vector, one = ModelVector(NetWithBatchNorm()), server(fl.SparseFed(k=3))
    one.step(updates(vector, 1.0, 2.0, 3.0), COHORT, vector)
    other = server(fl.SparseFed(k=3))
    other.load_state_dict(one.state_dict(), torch.device("cpu"))
    assert torch.equal(other.last_update, one.last_update)
    twin = ModelVector(NetWithBatchNorm())
    twin.restore(vector.snapshot())
    one.step(updates(vector, 1.0, 2.0, 3.0), COHORT, vector)
    other.step(updates(twin, 1.0, 2.0, 3.0), COHORT, twin)
    assert torch.equal(vector.read(), twin.read())
