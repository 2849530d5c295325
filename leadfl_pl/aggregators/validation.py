"""Validation: malformed updates are left out of the aggregation, with a warning that names them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from leadfl_pl.core.values import ClientUpdate

LARGEST_NORM = torch.finfo(torch.float32).max ** 0.5  # its square overflows float32 beyond

Client = TypeVar("Client")


class RejectedUpdate(UserWarning):
    """An update was left out of the aggregation."""


def well_formed(updates: Sequence[ClientUpdate], round: int, d: int, b: int) -> list[ClientUpdate]:
    """The well-formed updates; warns of every other one by its client and what is wrong.

    Rejected are: a delta or buffers of another shape than (d,) and (b,), entries that are not
    finite, a norm whose square overflows float32, no examples, and a second update of a client.
    """
    kept: list[ClientUpdate] = []
    for update in updates:
        fault = (
            _shape_fault("delta", update.delta, d)
            or _shape_fault("buffers", update.buffers, b)
            or fault_of(update.delta, update.num_examples)
            or fault_of(update.buffers, update.num_examples)
        )
        if update.client_id in {u.client_id for u in kept}:
            fault = fault or "it is the second one of this client"
        if is_sound(f"client {update.client_id} in round {round}", fault):
            kept.append(update)
    return kept


def reject(updates: Tensor, weights: Tensor, names: Sequence[str]) -> list[int]:
    """The rows of (n, d) that are well-formed; warns of every other one by its name."""
    rows = zip(updates, weights.tolist(), names, strict=True)
    return [i for i, (u, count, name) in enumerate(rows) if is_sound(name, fault_of(u, count))]


def fault_of(vector: Tensor, num_examples: float) -> str | None:
    """What is wrong with a vector (d,) from as many examples; None: nothing.

    >>> fault_of(torch.tensor([1.0, float("nan")]), 5)
    'it has 1 entries that are not finite'
    >>> fault_of(torch.tensor([1e30]), 5)
    'its norm is beyond 1.8e+19'
    >>> fault_of(torch.tensor([1.0]), 0)
    'it is from 0 examples'
    """
    if not torch.linalg.vector_norm(vector) <= LARGEST_NORM:  # NaN included
        count = int((~vector.isfinite()).sum())
        if count:
            return f"it has {count} entries that are not finite"
        return f"its norm is beyond {LARGEST_NORM:.1e}"
    if not 0 < num_examples < float("inf"):
        return f"it is from {num_examples:g} examples"
    return None


def _shape_fault(name: str, vector: Tensor, length: int) -> str | None:
    if vector.shape != (length,):
        return f"its {name} has shape {tuple(vector.shape)}, not ({length},)"
    return None


def is_sound(name: str, fault: str | None) -> bool:
    """Whether an update has no fault; else a warning says whose is left out, and why."""
    if fault is not None:
        message = f"the update of {name} is rejected: {fault}"
        warnings.warn(message, RejectedUpdate, stacklevel=3)
    return fault is None


def stack_states(
    states: Mapping[Client, Mapping[str, Tensor]], like: Mapping[str, Tensor], when: str = ""
) -> tuple[Tensor, list[Client]]:
    """Updates given as state dicts, as the rows (n, d) that a rule takes, and whose they are.

    Those that lack a key, have one too many, or a tensor of another shape are left out with a
    warning.

    Args:
        states: the update of each client, by its id.
        like: a state dict with the keys and the shapes that are right, e.g. the model's.
        when: follows a client's id in a warning, such as its round: Python shows the same warning
            only once.

    >>> rows, clients = stack_states(
    ...     {7: {"w": torch.ones(2)}}, like={"w": torch.zeros(2)})
    >>> rows, clients
    (tensor([[1., 1.]]), [7])
    """
    clients = [
        client for client, state in states.items()
        if is_sound(f"client {client}{when}", _state_fault(state, like))
    ]  # fmt: skip
    rows = [torch.cat([states[c][key].detach().reshape(-1) for key in like]) for c in clients]
    d = sum(t.numel() for t in like.values())
    return (torch.stack(rows) if rows else torch.empty(0, d)), clients


def _state_fault(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str | None:
    if missing := [key for key in like if key not in state]:
        return f"it lacks {', '.join(missing)}"
    if extra := [key for key in state if key not in like]:
        return f"it has {', '.join(map(str, extra))}, which the model has not"
    for key, tensor in like.items():
        if state[key].layout != torch.strided:
            return f"{key} is {state[key].layout}, not dense"
        if state[key].shape != tensor.shape:
            return f"{key} has shape {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
    return None
