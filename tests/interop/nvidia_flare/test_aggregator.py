"""The aggregator of a recipe: any rule, and no reply that spoils the round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.workflows.base_fedavg import BaseFedAvg
from nvflare.job_config.fed_job_config import FedJobConfig
from test_contract_rules import RULES
from tiny import NetWithBatchNorm
from torch import Tensor

import leadfl_pl as fl
from leadfl_pl.core.describe import describe
from leadfl_pl.interop.nvflare import RobustAggregator

State = dict[str, Tensor]
torch.manual_seed(0)
MODEL = NetWithBatchNorm().state_dict()
PARAMETERS = [name for name, _ in NetWithBatchNorm().named_parameters()]


def moved(by: float) -> State:
    return {n: t + by if t.is_floating_point() else t + 5 for n, t in MODEL.items()}


def arrays(state: State) -> dict[str, np.ndarray]:
    return {name: t.numpy() for name, t in state.items()}


def reply(client: str, state: State, steps: Any = 10, **more: Any) -> FLModel:
    meta = {"client_name": client, "NUM_STEPS_CURRENT_ROUND": steps}
    return FLModel(params=arrays(state), meta=meta, **more)


def replies(*by: float) -> list[FLModel]:
    return [reply(f"site-{i}", moved(step)) for i, step in enumerate(by)]


def start(aggregator: RobustAggregator, model: Any, round: int = 3) -> FLContext:
    """What NVFlare's ``FedAvg`` does before a round."""
    context = FLContext()
    context.set_prop(AppConstants.GLOBAL_MODEL, {"weights": model})
    context.set_prop(AppConstants.CURRENT_ROUND, round)
    aggregator.handle_event(EventType.START_RUN, context)
    aggregator.reset_stats()
    return context


def run(rule: fl.Aggregator, *models: FLModel) -> FLModel:
    aggregator = RobustAggregator(rule)
    start(aggregator, arrays(MODEL))
    for model in models:
        aggregator.accept_model(model)
    return aggregator.aggregate_model()


def test_median_is_what_it_is_by_hand_to_the_bit() -> None:
    torch.manual_seed(1)
    states = [{n: t + torch.randn_like(t) if t.is_floating_point() else t for n, t in MODEL.items()}
              for _ in range(5)]  # fmt: skip
    after = run(fl.Median(), *(reply(f"site-{i}", state) for i, state in enumerate(states)))
    for name in PARAMETERS:
        differences = torch.stack([state[name] - MODEL[name] for state in states])
        expected = MODEL[name] + differences.sort(dim=0).values[2]
        assert torch.from_numpy(after.params[name]).equal(expected)


def test_a_rule_is_applied_to_the_updates_buffers_and_counters_are_the_servers() -> None:
    after = run(fl.MultiKrum(f=1, m=2), *replies(0.0, 1.0, 2.5, 6.0, 99.0))
    assert after.params_type == ParamsType.FULL
    assert list(after.params) == list(MODEL)
    for name, array in after.params.items():
        step = 0.5 if MODEL[name].is_floating_point() else 0
        torch.testing.assert_close(torch.from_numpy(array), MODEL[name] + step)


def test_differences_give_what_models_give() -> None:
    by = (0.0, 1.0, 2.5, 6.0, 99.0)
    differences = [
        reply(f"site-{i}", {n: t - MODEL[n] for n, t in moved(step).items()}, params_type="DIFF")
        for i, step in enumerate(by)
    ]
    rule = fl.PreAggregation([fl.NormClipping(max_norm=30.0)], fl.MultiKrum(f=1, m=2))
    full, diff = run(rule, *replies(*by)), run(rule, *differences)
    for name in MODEL:
        np.testing.assert_allclose(full.params[name], diff.params[name], atol=1e-6)
    assert not np.allclose(full.params["0.bias"], MODEL["0.bias"])


def test_tensors_are_answered_with_tensors() -> None:
    aggregator = RobustAggregator(fl.Median())
    start(aggregator, MODEL)
    for client in "ab":
        aggregator.accept_model(FLModel(params=moved(1.0), meta={"client_name": client}))
    after = aggregator.aggregate_model().params["0.bias"]
    torch.testing.assert_close(after, MODEL["0.bias"] + 1)


def test_fed_avg_weighs_by_the_number_of_steps() -> None:
    two = reply("a", moved(0.0), steps=10), reply("b", moved(4.0), steps=30)
    after = run(fl.FedAvg(), *two).params["0.bias"]
    np.testing.assert_allclose(after, MODEL["0.bias"] + 3.0, rtol=1e-6)


NAN = moved(3.0) | {"0.bias": torch.full((4,), torch.nan)}
WORDS = FLModel(
    params=arrays(MODEL) | {"0.bias": np.array(["a", "b", "c", "d"])},
    meta={"client_name": "evil"},
)
MALFORMED = {
    "a wrong shape": (reply("evil", moved(3.0) | {"0.bias": torch.ones(5)}), r"shape \(5,\), not"),
    "a missing key": (reply("evil", {"0.bias": MODEL["0.bias"]}), "it lacks 0.weight"),
    "an additional key": (reply("evil", moved(3.0) | {"more": torch.ones(1)}), "it has more, wh"),
    "NaN": (reply("evil", NAN), "4 entries that are not finite"),
    "NaN in a difference": (reply("evil", NAN, params_type="DIFF"), "4 entries that are not fin"),
    "a negative number of steps": (reply("evil", moved(3.0), -30), "it is from -30 examples"),
    "NaN steps": (reply("evil", moved(3.0), float("nan")), "it is from nan examples"),
    "steps in words": (reply("evil", moved(3.0), "many"), "its NUM_STEPS_CURRENT_ROUND is no num"),
    "an array of words": (WORDS, "its parameters cannot be read"),
    "no dictionary": (FLModel(params=[1.0], meta={"client_name": "evil"}), "cannot be read"),
}
malformed = pytest.mark.parametrize(
    ("bad", "fault"), MALFORMED.values(), ids=[key.replace(" ", "-") for key in MALFORMED]
)


@pytest.mark.parametrize("steps", [np.int64(30), np.float32(30), None])
def test_numbers_of_steps_are_numpys_as_well_and_one_where_there_is_none(steps: Any) -> None:
    two = [reply("site-0", moved(0.0), 30 if steps else 1), reply("site-1", moved(1.0), steps)]
    two[1].metrics = {"accuracy": 0.5}
    merged = run(fl.FedAvg(), *two)
    np.testing.assert_allclose(merged.params["0.bias"], MODEL["0.bias"] + 0.5)
    assert merged.metrics == {"accuracy": 0.5}


@malformed
def test_a_malformed_reply_is_left_out(bad: FLModel, fault: str) -> None:
    good = replies(0.0, 1.0, 2.0)
    with pytest.warns(fl.RejectedUpdate, match=f"client evil.* is rejected: .*{fault}"):
        after = run(fl.Median(), bad, *good)
    alone = run(fl.Median(), *good)
    assert all(np.array_equal(after.params[name], alone.params[name]) for name in MODEL)


def test_nvflares_own_mean_loses_the_model_or_raises() -> None:
    def mean(name: str) -> dict[str, np.ndarray]:
        return BaseFedAvg.aggregate_fn([*replies(0.0, 1.0), MALFORMED[name][0]]).params

    assert np.isnan(mean("NaN")["0.bias"]).all()
    assert "more" in mean("an additional key")
    with pytest.raises(ValueError, match="could not be broadcast"):
        mean("a wrong shape")
    counter = "1.num_batches_tracked"
    assert mean("a negative number of steps")[counter] == MODEL[counter] + 5


def test_a_second_reply_of_a_client_is_left_out() -> None:
    with pytest.warns(fl.RejectedUpdate, match="client site-0 in round 3 .* second one of this"):
        after = run(fl.FedAvg(), *replies(1.0), reply("site-0", moved(9.0)))
    np.testing.assert_allclose(after.params["0.bias"], MODEL["0.bias"] + 1, rtol=1e-6)


def test_with_too_few_replies_the_model_stays() -> None:
    with pytest.warns(UserWarning, match="round 3 keeps the old model: Krum needs n >= 2f"):
        after = run(fl.Krum(f=1), *replies(1.0, 1.0))
    assert all(np.array_equal(after.params[name], MODEL[name]) for name in MODEL)


def test_the_order_of_arrival_changes_nothing() -> None:
    models = replies(0.1, 0.7, 1e4)
    one, other = run(fl.FedAvg(), *models), run(fl.FedAvg(), *reversed(models))
    assert all(np.array_equal(one.params[name], other.params[name]) for name in MODEL)


def test_metrics_are_those_of_the_selected_that_are_finite_numbers() -> None:
    models = [
        reply(f"site-{i}", moved(by), metrics={"loss": by, "note": "x", "odd": odd})
        for i, (by, odd) in enumerate([(0.0, 1.0), (1.0, np.nan), (2.5, 1.0), (6.0, 1), (99.0, 1)])
    ]
    assert run(fl.MultiKrum(f=1, m=2), *models).metrics == {"loss": 0.5, "odd": 1.0}


def test_a_rule_keeps_its_memory_between_rounds_and_replies_are_forgotten() -> None:
    aggregator = RobustAggregator(fl.SparseFed(k=1))
    weights = arrays(MODEL)
    for round in range(2):
        start(aggregator, weights, round)
        assert aggregator.replies == {}
        for model in replies(1.0, 1.0):
            aggregator.accept_model(model)
        weights = aggregator.aggregate_model().params
    changed = sum((weights[n] != MODEL[n].numpy()).sum() for n in PARAMETERS)
    assert changed == 2  # one coordinate a round, another one thanks to the memory


def test_noise_is_a_function_of_seed_and_round() -> None:
    def noisy(seed: int, round: int) -> np.ndarray:
        aggregator = RobustAggregator(fl.WeakDP(max_norm=1.0, noise=0.1), seed)
        start(aggregator, arrays(MODEL), round)
        aggregator.accept_model(reply("a", moved(1.0)))
        return aggregator.aggregate_model().params["0.bias"]

    assert np.array_equal(noisy(5, 2), noisy(5, 2))
    assert not np.array_equal(noisy(5, 2), noisy(5, 3))
    assert not np.array_equal(noisy(5, 2), noisy(6, 2))


class Lost(fl.Median):
    """Forgets an argument."""

    def __init__(self, width: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("median", "RobustAggregator: rule must be an Aggregator such as FedAvg.., got str"),
        (fl.LeadFL(), "RobustAggregator: rule must be an Aggregator such as FedAvg.., got LeadFL"),
        (fl.Aggregator(), "rule must define combine.. or aggregate.., got Aggregator"),
        (fl.FLTrust(), "RobustAggregator: rule must be a rule that needs no training on the serv"),
        (Lost(width=3), "rule must be of a class .* keep its arguments as attributes .*, got Lost"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_sentence(rule: object, sentence: str) -> None:
    with pytest.raises(fl.ConfigError, match=sentence):
        RobustAggregator(rule)


def test_a_recipe_without_a_model_is_refused_in_one_sentence() -> None:
    aggregator = RobustAggregator(fl.Median())
    start(aggregator, {})
    with pytest.raises(fl.ConfigError, match="needs a recipe with a model"):
        aggregator.aggregate_model()


@pytest.mark.parametrize("name", [name for name in RULES if name != "FLTrust"])
def test_every_rule_is_the_same_after_the_config_of_a_job(name: str, tmp_path: Path) -> None:
    rule = RULES[name].make()
    written = FedJobConfig("job", 1)._get_args(RobustAggregator(rule, seed=7), str(tmp_path))
    again = RobustAggregator(**json.loads(json.dumps(written)))
    assert describe(again.aggregator) == describe(rule)
    assert again.seed == 7
