"""A rule of this package as the strategy of a Flower ``ServerApp``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from math import isfinite
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.aggregators.validation import is_sound
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.rng import MAX_SEED
from leadfl_pl.interop.states import Reply, aggregate_states, require_rule_for_states

OWNER = "RobustStrategy"
MOST_CLIENTS = 10_000  # that a rule may need in a round


class RobustStrategy(FedAvg):
    """Flower's ``FedAvg`` with another rule, which no reply of a client stops.

    The rule sees the updates, trained minus global arrays, of the floating-point parameters.
    BatchNorm's running statistics become the mean of the clients that the rule selected, integer
    counters stay the server's. Replies that are malformed are left out with a warning: other names
    or shapes, entries that are not finite, a norm beyond 1.8e19, bytes that are no array, not
    exactly one ``ArrayRecord``, no positive number under ``weighted_by_key``. With too few others
    for the rule, the global model stays as it is. Metrics are averaged over the clients that the
    rule selected, of those whose metrics are finite and have the keys that most have.

    Args:
        aggregator: any rule that needs no training on the server. What it remembers
            (``aggregator.state_dict()``) it keeps from round to round, also across calls of
            ``start``: give each run a rule of its own.
        seed: of the rule's noise, which is a function of the round too.
        settings: of ``flwr.serverapp.strategy.FedAvg``; ``min_train_nodes``, for which a round
            waits, is raised to what the rule needs.

    Raises:
        ConfigError: here, if ``aggregator`` is no rule, or needs training on the server; before
            training, if there are no arrays; after the first round, if all clients failed in it.

    >>> from leadfl_pl import MultiKrum
    >>> strategy = RobustStrategy(MultiKrum(f=1), fraction_train=0.1, min_train_nodes=10)

    Differences from Flower's own strategies (1.42):
        1. ``MultiKrum``, ``FedMedian`` and others measure and average whole state dicts, integer
           counters included.
        2. A reply with a wrong key or shape ends a run under any of them. NaN, or a negative number
           of examples, makes the model of ``FedAvg`` and ``FedMedian`` NaN or ends the run.
    """

    min_train_nodes: int

    def __init__(self, aggregator: Aggregator, seed: int = 0, **settings: Any) -> None:
        require_rule_for_states(f"{OWNER}: aggregator", aggregator)
        require_number(OWNER, "seed", seed, least=0, most=MAX_SEED, whole=True)
        super().__init__(**settings)
        if self.fraction_train:  # else no training at all
            self.min_train_nodes = max(self.min_train_nodes, fewest_clients(aggregator))
        self.aggregator = aggregator
        self.seed = seed
        self.model: dict[str, Tensor] = {}  # of the round

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keeps the global arrays, from which the updates are measured."""
        if not arrays:
            raise ConfigError(f"{OWNER}: initial_arrays must hold the model's arrays, got none")
        self.model = arrays.to_torch_state_dict()
        return list(super().configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Reject, aggregate, step."""
        answers, failures = self._check_and_log_replies(replies, is_train=True, validate=False)
        if server_round == 1 and failures and not answers:
            reasons = {message.error.reason for message in failures}
            raise ConfigError(
                f"all {len(failures)} clients failed in the first round: {reasons.pop()}"
            )
        if not answers:
            return None, None
        contents = {message.metadata.src_node_id: message.content for message in answers}
        received = {}
        for node, content in contents.items():
            reply, fault = read_reply(content, self.weighted_by_key)
            if is_sound(f"client {node} in round {server_round}", fault):
                received[node] = reply
        model, used = aggregate_states(
            self.aggregator, self.model, received, server_round, self.seed
        )
        sound = comparable([contents[node] for node in used], self.weighted_by_key)
        metrics = self.train_metrics_aggr_fn(sound, self.weighted_by_key) if sound else None
        return ArrayRecord(model), metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The mean of the metrics that can be averaged."""
        answers, _ = self._check_and_log_replies(replies, is_train=False, validate=False)
        sound = comparable([message.content for message in answers], self.weighted_by_key)
        return self.evaluate_metrics_aggr_fn(sound, self.weighted_by_key) if sound else None


def fewest_clients(rule: Aggregator) -> int:
    """The smallest number of updates that a rule can work on.

    >>> from leadfl_pl import Krum
    >>> fewest_clients(Krum(f=2))
    7
    """
    for n in range(1, MOST_CLIENTS):
        with suppress(ConfigError):
            rule.check(n)
            return n
    rule.check(MOST_CLIENTS)
    return MOST_CLIENTS


def read_reply(content: RecordDict, weight_key: str) -> tuple[Reply, str | None]:
    """A reply's arrays and number of examples, and what is wrong with it, if anything."""
    records = list(content.array_records.values())
    if len(records) != 1:
        return Reply({}, 0), f"it has {len(records)} ArrayRecords, not one"
    weights = [m[weight_key] for m in content.metric_records.values() if weight_key in m]
    if len(weights) != 1 or isinstance(weights[0], list):
        return Reply({}, 0), f"it does not have one number under {weight_key}"
    try:
        state = {name: torch.from_numpy(array.numpy()) for name, array in records[0].items()}
    except Exception as error:  # whatever reading a stranger's bytes may raise
        return Reply({}, 0), f"its arrays cannot be read: {error}"
    return Reply(state, weights[0]), None


def comparable(contents: list[RecordDict], weight_key: str) -> list[RecordDict]:
    """Those whose metrics can be averaged: of the form that most of the sound ones have."""
    forms = [metric_form(content, weight_key) for content in contents]
    most = Counter(form for form in forms if form is not None).most_common(1)
    return [c for c, form in zip(contents, forms, strict=True) if most and form == most[0][0]]


def metric_form(content: RecordDict, weight_key: str) -> frozenset[tuple[str, int | None]] | None:
    """The keys of a reply's one ``MetricRecord``, each with the length of its list.

    None if it has several or none, a number that is not finite, or no weight above 0.
    """
    records = list(content.metric_records.values())
    if len(records) != 1 or isinstance(weight := records[0].get(weight_key, 0), list):
        return None
    entries = records[0].items()
    numbers = [v for _, value in entries for v in (value if isinstance(value, list) else [value])]
    if not weight > 0 or not all(map(isfinite, numbers)):
        return None
    return frozenset((k, len(v) if isinstance(v, list) else None) for k, v in entries)
