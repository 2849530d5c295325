"""A rule of this package as the aggregator of an NVIDIA FLARE recipe."""

from __future__ import annotations

import json
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.aggregators.validation import is_sound
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.rng import MAX_SEED
from leadfl_pl.interop.nvflare.settings import from_settings, settings_of
from leadfl_pl.interop.states import Reply, aggregate_states, require_rule_for_states

OWNER = "RobustAggregator"
MAX_STEPS = 2**53  # more are no number of their own in a float


class RobustAggregator(ModelAggregator):
    """The aggregator of a ``FedAvgRecipe`` with any rule, which no malformed reply stops.

    The rule sees the updates, trained minus global, of the floating-point parameters, whether
    clients send models or differences (``params_transfer_type``). BatchNorm's running statistics
    become the mean of the clients that the rule selected, integer counters stay the server's.
    Replies that are malformed are left out with a warning: other names or shapes, entries that are
    not finite, a norm beyond 1.8e19, what is no array, a number of steps that is not positive, a
    second reply of a client. With too few others for the rule, the global model stays as it is.
    Metrics are averaged, where they are finite numbers, over the clients that the rule selected.

    NVFlare writes the aggregator into the job's config and builds it anew on the server, which
    needs this package, and the module of a rule of your own.

    Args:
        rule: any that needs no training on the server; or what a job's config has of one. What it
            remembers between rounds is kept until the job's end.
        seed: of the rule's noise, which is a function of the round too.

    Raises:
        ConfigError: here, if ``rule`` is no rule, needs training on the server, or cannot be built
            again from its settings; in the first round, if the recipe has no model.

    >>> from leadfl_pl import MultiKrum
    >>> aggregator = RobustAggregator(MultiKrum(f=1))

    Differences from NVFlare's own mean (2.9):
        1. It averages whole state dicts, integer counters included.
        2. NaN makes its model NaN, an additional key becomes a key of the model, and a wrong shape
           is noticed when a part of the reply has been added.
        3. A number of steps that is not positive counts as one step there.
    """

    def __init__(self, rule: Aggregator | str, seed: int = 0) -> None:
        super().__init__()
        if isinstance(rule, str) and rule.startswith("{"):
            rule = from_settings(json.loads(rule))
        require_rule_for_states(f"{OWNER}: rule", rule)
        assert isinstance(rule, Aggregator)
        require_number(OWNER, "seed", seed, least=0, most=MAX_SEED, whole=True)
        self.aggregator = rule
        self._rule = json.dumps(settings_of(rule))  # NVFlare writes it as the argument `rule`
        self.seed = seed
        self.replies: dict[str, FLModel] = {}

    def reset_stats(self) -> None:
        """Forgets the replies of the last round."""
        self.replies = {}

    def accept_model(self, model: FLModel) -> None:
        """Keeps a reply until all are there."""
        client = str(model.meta.get("client_name"))
        twice = "it is the second one of this client" if client in self.replies else None
        if is_sound(self.name_of(client), twice):
            self.replies[client] = model

    def aggregate_model(self) -> FLModel:
        """Reject, aggregate, step. Returns the global model after the round."""
        weights = self.global_weights()
        received = {}
        for client, model in sorted(self.replies.items()):  # they came in any order
            reply, fault = read_reply(model)
            if is_sound(self.name_of(client), fault):
                received[client] = reply
        after, used = aggregate_states(
            self.aggregator, state_of(weights), received, self.round, self.seed
        )
        params = {n: t if isinstance(weights[n], Tensor) else t.numpy() for n, t in after.items()}
        return FLModel(
            params_type=ParamsType.FULL,
            params=params,
            metrics=mean_metrics({c: self.replies[c] for c in used}),
        )

    @property
    def round(self) -> int:
        """t."""
        return int(self.fl_ctx.get_prop(AppConstants.CURRENT_ROUND))

    def name_of(self, client: str) -> str:
        """A client's name in a warning."""
        return f"client {client} in round {self.round}"

    def global_weights(self) -> dict[str, Any]:
        """The global model of the round, arrays or tensors by name."""
        model = self.fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)
        if not model or not model[ModelLearnableKey.WEIGHTS]:
            raise ConfigError(f"{OWNER} needs a recipe with a model, such as model=Net(), got none")
        weights: dict[str, Any] = model[ModelLearnableKey.WEIGHTS]
        return weights


def state_of(params: dict[str, Any]) -> dict[str, Tensor]:
    """Arrays or tensors as a state dict."""
    return {name: torch.as_tensor(value).detach() for name, value in params.items()}


def read_reply(model: FLModel) -> tuple[Reply, str | None]:
    """A reply's parameters and number of steps, and what is wrong with it, if anything."""
    steps = steps_of(model)
    if isinstance(steps, bool) or not isinstance(steps, (int, float)) or steps > MAX_STEPS:
        return Reply({}, 0), f"its {FLMetaKey.NUM_STEPS_CURRENT_ROUND} is no number of steps"
    try:
        state = state_of(model.params)
    except Exception as error:  # whatever reading a stranger's parameters may raise
        return Reply({}, 0), f"its parameters cannot be read: {error}"
    return Reply(state, steps, model.params_type == ParamsType.DIFF), None


def steps_of(model: FLModel) -> Any:
    """A reply's number of local steps; 1 where it has none, as for NVFlare's own mean."""
    steps = model.meta.get(FLMetaKey.NUM_STEPS_CURRENT_ROUND)
    steps = steps.item() if isinstance(steps, np.generic) else steps
    return 1 if steps is None else steps


def mean_metrics(models: dict[str, FLModel]) -> dict[str, float] | None:
    """The mean of the clients' metrics that are finite numbers, weighted by numbers of steps."""
    helper = WeightedAggregationHelper()
    for client, model in models.items():
        metrics = (model.metrics or {}).items()
        if numbers := {k: v for k, v in metrics if isinstance(v, Real) and isfinite(v)}:
            helper.add(numbers, steps_of(model), client, 0)
    return helper.get_result() or None
