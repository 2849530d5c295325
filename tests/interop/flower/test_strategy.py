"""The strategy of a ServerApp: any rule, and no reply that ends the run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import flower_process  # noqa: F401
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAvg, Strategy
from tiny import NetWithBatchNorm
from torch import Tensor

import leadfl_pl as fl
from leadfl_pl.interop.flower import RobustStrategy

State = dict[str, Tensor]
Content = dict[str, ArrayRecord | MetricRecord]
torch.manual_seed(0)
MODEL = NetWithBatchNorm().state_dict()


def moved(by: float) -> State:
    return {n: t + by if t.is_floating_point() else t + 5 for n, t in MODEL.items()}


def content(state: State, examples: float = 10, **metrics: float) -> Content:
    return {
        "arrays": ArrayRecord(state),
        "metrics": MetricRecord({"num-examples": examples, **metrics}),
    }


class Nodes:
    """Stands for Flower's ``Grid``: node i answers what ``answers[i]`` makes of a message."""

    def __init__(self, answers: list[Callable[[Message], Message]]) -> None:
        self.answers = answers

    def get_node_ids(self) -> Iterable[int]:
        return range(len(self.answers))

    def send_and_receive(self, messages: Iterable[Message], **_: object) -> list[Message]:
        in_order = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return [self.answers[message.metadata.dst_node_id](message) for message in in_order]


def says(content: Content) -> Callable[[Message], Message]:
    return lambda message: Message(RecordDict(copy.deepcopy(content)), reply_to=message)


def fails(message: Message) -> Message:
    return Message(Error(2, "out of memory"), reply_to=message)


def run(
    strategy: Strategy, *contents: Content, evaluate: bool = False
) -> tuple[State, dict[str, float]]:
    """The global model after one round, and the metrics of training or of evaluation."""
    result = strategy.start(Nodes([says(c) for c in contents]), ArrayRecord(MODEL), num_rounds=1)
    metrics = result.evaluate_metrics_clientapp if evaluate else result.train_metrics_clientapp
    return result.arrays.to_torch_state_dict(), dict(metrics.get(1, {}))


def training_only(rule: fl.Aggregator, **settings: float) -> RobustStrategy:
    return RobustStrategy(rule, fraction_evaluate=0.0, **settings)


def test_a_rule_is_applied_to_the_updates() -> None:
    after, metrics = run(
        training_only(fl.MultiKrum(f=1, m=2)),
        *(content(moved(by), loss=by) for by in (0.0, 1.0, 2.5, 6.0, 99.0)),
    )
    for name, tensor in after.items():
        step = 0.5 if tensor.is_floating_point() else 0
        torch.testing.assert_close(tensor, MODEL[name] + step)
        assert tensor.dtype == MODEL[name].dtype
    assert list(after) == list(MODEL)
    assert metrics == {"loss": 0.5}  # of the selected


def test_fed_avg_is_flowers_but_for_counters() -> None:
    contents = [content(moved(by), examples) for by, examples in ((0.5, 10), (2.0, 30))]
    ours, _ = run(training_only(fl.FedAvg()), *contents)
    theirs, _ = run(FedAvg(fraction_evaluate=0.0), *contents)
    for name in PARAMETERS:
        torch.testing.assert_close(ours[name], theirs[name], check_dtype=False)
    counter = "1.num_batches_tracked"
    assert (ours[counter], theirs[counter]) == (MODEL[counter], MODEL[counter] + 5)


PARAMETERS = [name for name, _ in NetWithBatchNorm().named_parameters()]
NAN = moved(3.0) | {"0.bias": torch.full((4,), torch.nan)}
JUNK = ArrayRecord(MODEL)
JUNK["0.bias"] = Array("float32", (4,), "numpy.ndarray", b"junk")
WORDS = ArrayRecord(MODEL)
WORDS["0.bias"] = Array(np.array(["a", "b", "c", "d"]))
MALFORMED: dict[str, tuple[Content, str]] = {
    "a wrong shape": (content(moved(3.0) | {"0.bias": torch.ones(5)}), r"shape \(5,\), not"),
    "a missing key": (content({"0.bias": MODEL["0.bias"]}), "it lacks 0.weight"),
    "an additional key": (content(moved(3.0) | {"more": torch.ones(1)}), "it has more, which"),
    "NaN": (content(NAN), "4 entries that are not finite"),
    "a negative number of examples": (content(moved(3.0), -30), "it is from -30 examples"),
    "NaN examples": (content(moved(3.0), float("nan")), "it is from nan examples"),
    "a list of examples": (content(moved(3.0), [10, 10]), "not have one number under num-examples"),
    "no metrics": ({"arrays": ArrayRecord(MODEL)}, "not have one number under num-examples"),
    "no arrays": ({"m": MetricRecord({"num-examples": 1})}, "0 ArrayRecords, not one"),
    "arrays twice": (content(MODEL) | {"b": ArrayRecord(MODEL)}, "2 ArrayRecords, not one"),
    "bytes that are no array": (content(MODEL) | {"arrays": JUNK}, "arrays cannot be read"),
    "an array of words": (content(MODEL) | {"arrays": WORDS}, "arrays cannot be read"),
}
malformed = pytest.mark.parametrize(
    ("bad", "fault"), MALFORMED.values(), ids=[key.replace(" ", "-") for key in MALFORMED]
)


@malformed
def test_a_malformed_reply_is_left_out(bad: Content, fault: str) -> None:
    good = [content(moved(by)) for by in (0.0, 1.0, 2.0)]
    with pytest.warns(fl.RejectedUpdate, match=f"client 3.* is rejected: .*{fault}"):
        after, _ = run(training_only(fl.Median()), *good, bad)
    alone, _ = run(training_only(fl.Median()), *good)
    assert all(after[name].equal(alone[name]) for name in MODEL)


@malformed
def test_flowers_own_fed_avg_raises_or_loses_the_model_on_it(bad: Content, fault: str) -> None:
    good = [content(moved(by)) for by in (0.0, 1.0, 2.0)]
    try:
        after, _ = run(FedAvg(fraction_evaluate=0.0), *good, bad)
    except (InconsistentMessageReplies, ValueError, TypeError, ZeroDivisionError):
        return
    assert not after["0.bias"].isfinite().any()


def test_metrics_of_another_form_do_not_spoil_those_of_the_others() -> None:
    odd = [
        content(moved(1.0), loss=float("nan")),
        content(moved(1.0), loss=[1.0, 2.0]),
        content(moved(1.0), other=1.0),
    ]
    good = [content(moved(1.0), loss=loss) for loss in (1.0, 3.0)]
    after, metrics = run(training_only(fl.FedAvg()), *good, *odd)
    torch.testing.assert_close(after["0.bias"], MODEL["0.bias"] + 1)
    assert metrics == {"loss": 2.0}


def test_evaluation_goes_on_as_well() -> None:
    answers = [{"metrics": MetricRecord({"num-examples": 10, "accuracy": a})} for a in (0.2, 0.6)]
    odd = [
        {"metrics": MetricRecord({"num-examples": -20, "accuracy": 9.0})},
        {"metrics": MetricRecord({"accuracy": 9.0})},
        {},
    ]
    strategy = RobustStrategy(fl.FedAvg(), fraction_train=0.0)
    result = strategy.start(
        Nodes([says(a) for a in answers + odd]), ArrayRecord(MODEL), num_rounds=1
    )
    assert dict(result.evaluate_metrics_clientapp[1]) == {"accuracy": pytest.approx(0.4)}


def test_a_client_that_fails_is_one_fewer_and_a_round_without_enough_keeps_the_model() -> None:
    good = [says(content(moved(1.0))) for _ in range(4)]
    nodes = Nodes([*good, fails])
    with pytest.warns(UserWarning, match="round 1 keeps the old model: Krum needs n >= 2f"):
        result = training_only(fl.Krum(f=1)).start(nodes, ArrayRecord(MODEL), num_rounds=1)
    assert result.arrays.to_torch_state_dict()["0.bias"].equal(MODEL["0.bias"])
    result = training_only(fl.Median()).start(nodes, ArrayRecord(MODEL), num_rounds=1)
    torch.testing.assert_close(result.arrays.to_torch_state_dict()["0.bias"], MODEL["0.bias"] + 1)


def test_a_rule_keeps_its_memory_between_rounds() -> None:
    rule = fl.SparseFed(k=1)
    nodes = Nodes([says(content(moved(1.0))) for _ in range(2)])
    training_only(rule).start(nodes, ArrayRecord(MODEL), num_rounds=2)
    assert rule.error.abs().sum() > 0


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("median", "RobustStrategy: aggregator must be an Aggregator such as FedAvg.., got str"),
        (fl.LeadFL(), "aggregator must be an Aggregator such as FedAvg.., got LeadFL"),
        (fl.Aggregator(), "aggregator must define combine.. or aggregate.., got Aggregator"),
        (fl.FLTrust(), "aggregator must be a rule that needs no training on the server"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_sentence(rule: object, sentence: str) -> None:
    with pytest.raises(fl.ConfigError, match=sentence):
        RobustStrategy(rule)


def test_a_round_waits_for_as_many_clients_as_the_rule_needs() -> None:
    assert RobustStrategy(fl.Krum(f=1)).min_train_nodes == 5
    assert RobustStrategy(fl.Krum(f=1), min_train_nodes=8).min_train_nodes == 8
    assert RobustStrategy(fl.Krum(f=1), min_train_nodes=0).min_train_nodes == 5
    assert RobustStrategy(fl.Krum(f=1), fraction_train=0.0).min_train_nodes == 0


def test_no_arrays_are_refused_in_one_sentence() -> None:
    with pytest.raises(fl.ConfigError, match="initial_arrays must hold the model's arrays"):
        training_only(fl.Median()).start(Nodes([fails] * 2), ArrayRecord(), num_rounds=1)


def test_a_first_round_in_which_all_clients_fail_says_why() -> None:
    with pytest.raises(fl.ConfigError, match=r"all 3 clients failed .* first round: out of memory"):
        training_only(fl.Median()).start(Nodes([fails] * 3), ArrayRecord(MODEL), num_rounds=1)
