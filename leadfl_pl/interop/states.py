"""A rule on models given as state dicts, which is how other frameworks send them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from leadfl_pl.aggregators import Aggregator, stack_states
from leadfl_pl.aggregators.base import check_aggregated, require_rule
from leadfl_pl.aggregators.validation import reject
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.rng import derive_seed, generator, isolated_rng
from leadfl_pl.core.values import ServerContext
from leadfl_pl.core.vector import unflatten

State = Mapping[str, Tensor]  # a model's, by name
Client = TypeVar("Client")
BUFFERS = ("running_mean", "running_var")  # the last part of their names in torch's normalisations


class Reply(NamedTuple):
    """What a client sends after its local steps."""

    state: State  # of its model, or the difference from the global one
    num_examples: float
    is_difference: bool = False


class StateNames(NamedTuple):
    """The names of a state dict, by what a server does with them."""

    parameters: list[str]  # what a rule sees, as one vector (d,)
    buffers: list[str]  # become the mean of the clients that the rule selected
    kept: list[str]  # integers: the server's stay as they are

    @classmethod
    def of(cls, state: State) -> StateNames:
        """By dtype, and by the names that torch gives to buffers.

        >>> StateNames.of(torch.nn.BatchNorm1d(3).state_dict())  # doctest: +NORMALIZE_WHITESPACE
        StateNames(parameters=['weight', 'bias'], buffers=['running_mean', 'running_var'],
                   kept=['num_batches_tracked'])
        """
        floating = [name for name, t in state.items() if t.is_floating_point()]
        buffers = [name for name in floating if name.split(".")[-1] in BUFFERS]
        parameters = [name for name in floating if name not in buffers]
        return cls(parameters, buffers, [name for name in state if name not in floating])


def flatten(state: State, names: list[str]) -> Tensor:
    """The tensors of these names as one vector."""
    return torch.cat([torch.empty(0), *(state[name].reshape(-1) for name in names)])


def require_rule_for_states(key: str, rule: object) -> None:
    """Raises :class:`ConfigError` unless :func:`aggregate_states` can apply ``rule``."""
    require_rule(key, rule)
    if isinstance(rule, Aggregator) and rule.root_size:
        raise ConfigError(
            f"{key} must be a rule that needs no training on the server, got {type(rule).__name__}"
        )


def aggregate_states(
    rule: Aggregator, model: State, replies: Mapping[Client, Reply], round: int, seed: int
) -> tuple[dict[str, Tensor], list[Client]]:
    """The global model after a round, and the clients whose updates the rule used.

    Rejected with a warning are, as in a :class:`~leadfl_pl.Federation`: a missing or an additional
    name, another shape, entries that are not finite, a norm whose square overflows float32, and no
    examples. With too few others the model stays as it is, with a warning.

    Args:
        rule: any that needs no training on the server.
        model: the global one.
        replies: by client; integers in them are ignored.
        round: t.
        seed: of the rule's noise.

    Raises:
        ConfigError: the rule returns something else than it must.
        FloatingPointError: the model would not stay finite.

    >>> from leadfl_pl import Median
    >>> replies = {c: Reply({"w": torch.tensor([w])}, 1) for c, w in enumerate([1.0, 2.0, 9.0])}
    >>> aggregate_states(Median(), {"w": torch.zeros(1)}, replies, round=0, seed=0)
    ({'w': tensor([2.])}, [0, 1, 2])
    """
    names = StateNames.of(model)
    like = {name: model[name] for name in names.parameters + names.buffers}
    states = {
        client: {n: t.to(like[n]) if n in like else t for n, t in reply.state.items()
                 if n not in names.kept}
        for client, reply in replies.items()
    }  # fmt: skip
    start = flatten(like, list(like))  # (d + b,)
    d = sum(model[name].numel() for name in names.parameters)
    rows, clients = stack_states(states, like, f" in round {round}")
    measured = torch.tensor([replies[c].is_difference for c in clients], dtype=torch.bool)
    measured = measured.to(start.device).view(-1, 1)
    updates = rows.where(measured, rows - start)
    models = (start + rows).where(measured, rows)
    weights = updates.new_tensor([replies[client].num_examples for client in clients])
    keep = reject(updates, weights, [f"client {client} in round {round}" for client in clients])
    rule.check_size(d)
    try:
        rule.check_enough(len(keep), len(replies))
    except ConfigError as error:
        warnings.warn(f"round {round} keeps the old model: {error}", stacklevel=2)
        return dict(model), []
    noise = generator(seed, "server", round, device=start.device)
    ids = [derive_seed(0, f"client {clients[i]}") for i in keep]  # a framework's may be any keys
    context = ServerContext(noise, model=start[:d], clients=torch.tensor(ids, device=start.device))
    with isolated_rng(derive_seed(seed, "aggregate", round)):
        result = rule.aggregate(updates[keep, :d], weights[keep], context)
    delta, selected = check_aggregated(rule, result, len(keep), d)
    chosen = [keep[i] for i in selected.tolist()]
    moved = start.clone()
    moved[:d] += delta
    if chosen:
        moved[d:] = models[chosen, d:].mean(dim=0)
    if not bool(moved.isfinite().all()):
        raise FloatingPointError(
            f"round {round}: the update that {type(rule).__name__} made of finite ones is not "
            "finite. Lower the learning rate, or choose another rule"
        )
    after = {name: t.clone() for name, t in model.items()}
    unflatten(moved, [after[name] for name in like])
    return after, [clients[i] for i in chosen]
