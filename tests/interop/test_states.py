"""Rules on state dicts: what of a model is aggregated, averaged or kept, and what is rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import NetWithBatchNorm
from torch import Tensor

import leadfl_pl as fl
from leadfl_pl.core.rng import generator
from leadfl_pl.core.values import ServerContext
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.interop.states import Reply, StateNames, aggregate_states, require_rule_for_states

State = dict[str, Tensor]


def moved(model: State, by: float, counter: int) -> State:
    """The model with every floating tensor moved and every counter set."""
    return {n: t + by if t.is_floating_point() else t * 0 + counter for n, t in model.items()}


@pytest.fixture
def model() -> State:
    torch.manual_seed(0)
    return NetWithBatchNorm().state_dict()


def test_the_names_are_split_as_a_module_is(model: State) -> None:
    names, vector = StateNames.of(model), ModelVector(NetWithBatchNorm())
    for mine, theirs in zip(names, (vector.measured, vector.averaged, vector.kept), strict=True):
        assert [model[name].shape for name in mine] == [t.shape for t in theirs]


def test_parameters_follow_the_rule_buffers_the_selected_and_counters_the_server(
    model: State,
) -> None:
    far = moved(model, 100.0, 7)
    replies = {c: Reply(moved(model, by, 7), 1) for c, by in enumerate([0.0, 1.0, 2.5, 6.0])}
    after, used = aggregate_states(
        fl.MultiKrum(f=1, m=2), model, replies | {9: Reply(far, 1)}, round=1, seed=0
    )
    assert set(used) == {0, 1}
    for name, tensor in after.items():
        expected = model[name] + 0.5 if tensor.is_floating_point() else model[name]
        torch.testing.assert_close(tensor, expected)
        assert tensor.dtype == model[name].dtype


def test_a_rule_sees_neither_buffers_nor_counters(model: State) -> None:
    replies = {c: moved(model, by, 0) for c, by in enumerate([0.0, 1.0, 2.0, 3.0, 9.0])}
    replies[0]["1.running_mean"] += 1e6
    replies[0]["1.num_batches_tracked"] += 10**6
    _, used = aggregate_states(
        fl.Krum(f=1), model, {c: Reply(s, 1) for c, s in replies.items()}, round=1, seed=0
    )
    assert used == [1]


class Careless(fl.FedAvg):
    """A user's rule that draws from the global generator."""

    def combine(self, updates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return super().combine(updates, weights) + torch.rand(())


def test_draws_of_a_rule_are_those_of_the_round(model: State) -> None:
    after = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        replies = {0: Reply(moved(model, 1.0, 0), 1)}
        after += [aggregate_states(Careless(), model, replies, round=t, seed=0)[0] for t in (0, 1)]
    assert all(after[0][name].equal(t) for name, t in after[2].items())
    assert not all(after[0][name].equal(t) for name, t in after[1].items())


def test_the_model_is_not_changed_in_place(model: State) -> None:
    before = {name: t.clone() for name, t in model.items()}
    aggregate_states(fl.FedAvg(), model, {0: Reply(moved(model, 1.0, 0), 1)}, round=1, seed=0)
    assert all(model[name].equal(t) for name, t in before.items())


@pytest.mark.parametrize(
    ("name", "value", "examples", "fault"),
    [
        ("0.weight", torch.zeros(3), 5, r"0.weight has shape \(3,\), not \(4, 1, 3, 3\)"),
        ("other", torch.zeros(3), 5, "it has other, which the model has not"),
        (3, torch.zeros(3), 5, "it has 3, which the model has not"),
        ("0.bias", torch.zeros(4).to_sparse(), 5, "0.bias is torch.sparse_coo, not dense"),
        ("0.bias", torch.full((4,), torch.nan), 5, "4 entries that are not finite"),
        ("1.running_var", torch.full((4,), torch.inf), 5, "4 entries that are not finite"),
        ("0.bias", torch.full((4,), 1e30), 5, "its norm is beyond"),
        ("0.bias", torch.zeros(4), -5, "it is from -5 examples"),
        ("0.bias", torch.zeros(4), torch.nan, "it is from nan examples"),
    ],
)
def test_a_malformed_reply_is_left_out(
    model: State, name: Any, value: Tensor, examples: float, fault: str
) -> None:
    good = Reply(moved(model, 1.0, 0), 5)
    bad = Reply(moved(model, 3.0, 0) | {name: value}, examples)
    with pytest.warns(fl.RejectedUpdate, match=f"client evil.* is rejected: .*{fault}"):
        after, used = aggregate_states(
            fl.FedAvg(), model, {"evil": bad, "good": good}, round=3, seed=0
        )
    assert used == ["good"]
    torch.testing.assert_close(after["0.bias"], model["0.bias"] + 1)


def test_with_too_few_replies_the_model_stays(model: State) -> None:
    replies = {c: Reply(moved(model, 1.0, 0), 1) for c in range(4)}
    with pytest.warns(UserWarning, match="round 2 keeps the old model: Krum needs n >= 2f"):
        after, used = aggregate_states(fl.Krum(f=1), model, replies, round=2, seed=0)
    assert used == []
    assert all(after[name].equal(t) for name, t in model.items())


def test_without_a_reply_the_model_stays(model: State) -> None:
    with pytest.warns(UserWarning, match="round 2 keeps the old model: FedAvg needs n >= 1"):
        after, _ = aggregate_states(fl.FedAvg(), model, {}, round=2, seed=0)
    assert all(after[name].equal(t) for name, t in model.items())


def test_a_difference_reaches_the_rule_as_it_is_and_buffers_are_moved_by_it(model: State) -> None:
    class Spy(fl.FedAvg):
        def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
            assert (updates[0] == torch.tensor(1e-12)).all()  # beside the model it is nothing
            assert updates[1].allclose(torch.ones(()))
            return super().combine(updates, weights)

    tiny = Reply({n: torch.full_like(t, 1e-12) for n, t in model.items()}, 1, is_difference=True)
    replies = {0: tiny, 1: Reply(moved(model, 1.0, 0), 1)}
    after, _ = aggregate_states(Spy(), model, replies, round=0, seed=0)
    for name in ("0.bias", "1.running_mean"):
        torch.testing.assert_close(after[name], model[name] + 0.5)


def test_noise_is_a_function_of_seed_and_round() -> None:
    model, replies = {"w": torch.zeros(3)}, {0: Reply({"w": torch.ones(3)}, 1)}
    rule = fl.WeakDP(max_norm=1.0, noise=0.1)
    expected = rule.aggregate(
        torch.ones(1, 3), torch.ones(1), ServerContext(generator(5, "server", 2))
    ).delta
    after, _ = aggregate_states(rule, model, replies, round=2, seed=5)
    assert after["w"].equal(expected)


def test_a_client_of_any_name_keeps_its_history() -> None:
    model, rule = {"w": torch.zeros(2)}, fl.FoolsGold()
    for round in range(2):
        replies = {c: Reply({"w": torch.eye(2)[i]}, 1) for i, c in enumerate(("site-1", 2**63))}
        model, _ = aggregate_states(rule, model, replies, round, seed=0)
    assert rule.history.shape == (2, 2)
    for update in rule.history:  # 1 in the first round, less what the model moved in the second
        assert sorted(update.tolist()) == [-0.5, 1.5]


def test_a_rule_that_trains_on_the_server_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="rule that needs no training on the server, got FLT"):
        require_rule_for_states("aggregator", fl.FLTrust(root_size=10))
    require_rule_for_states("aggregator", fl.ServerDecay(fl.Median(), half_life=4.0))


def test_a_malformed_reply_is_named_in_every_round(model: State) -> None:
    replies = {"a": Reply(moved(model, 1.0, 0), 1), "b": Reply({"w": torch.zeros(1)}, 1)}
    for t in (1, 2):
        with pytest.warns(fl.RejectedUpdate, match=f"client b in round {t} is rejected"):
            aggregate_states(fl.FedAvg(), model, replies, round=t, seed=0)


def test_a_setting_that_no_round_can_have_is_no_short_round() -> None:
    replies = {c: Reply({"w": torch.ones(1)}, 1) for c in range(3)}
    with pytest.raises(fl.ConfigError, match="SparseFed: k must be"):
        aggregate_states(fl.SparseFed(k=2), {"w": torch.zeros(1)}, replies, round=1, seed=0)
