"""The door of every rule: malformed updates stop here, with a warning that names them."""

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


def faults(updates: Tensor, weights: Tensor) -> list[str | None]:
    """What is wrong with each row of (n, d), given its number of examples (n,); None: nothing.

    >>> faults(torch.tensor([[1.0], [float("nan")], [1e30]]), torch.tensor([5.0, 5.0, 5.0]))
    [None, 'it has 1 entries that are not finite', 'its norm is beyond 1.8e+19']
    """
    norms = torch.linalg.vector_norm(updates, dim=1)
    found: list[str | None] = []
    for i, (norm, weight) in enumerate(zip(norms.tolist(), weights.tolist(), strict=True)):
        fault = None
        if not norm <= LARGEST_NORM:  # NaN included
            count = int((~updates[i].isfinite()).sum())
            fault = f"its norm is beyond {LARGEST_NORM:.1e}"
            if count:
                fault = f"it has {count} entries that are not finite"
        elif not 0 < weight < float("inf"):
            fault = f"it is from {weight:g} examples"
        found.append(fault)
    return found


def reject(updates: Tensor, weights: Tensor, names: Sequence[str]) -> list[int]:
    """The rows of (n, d) that are well-formed; warns of every other one by its name."""
    found = faults(updates, weights)
    for name, fault in zip(names, found, strict=True):
        if fault is not None:
            warn_rejected(name, fault)
    return [i for i, fault in enumerate(found) if fault is None]


def warn_rejected(name: str, fault: str) -> None:
    """Says which update was left out, and why."""
    warnings.warn(f"the update of {name} is rejected: {fault}", RejectedUpdate, stacklevel=2)


def stack_states(
    states: Mapping[Client, Mapping[str, Tensor]], like: Mapping[str, Tensor]
) -> tuple[Tensor, list[Client]]:
    """Updates given as state dicts, as the rows (n, d) that a rule takes, and whose they are.

    Those that lack a key, have one too many, or a tensor of another shape are left out with a
    warning.

    Args:
        states: the update of each client, by its id.
        like: a state dict with the keys and the shapes that are right, e.g. the model's.

    >>> rows, clients = stack_states(
    ...     {7: {"w": torch.ones(2)}}, like={"w": torch.zeros(2)})
    >>> rows, clients
    (tensor([[1., 1.]]), [7])
    """
    rows: list[Tensor] = []
    clients: list[Client] = []
    for client, state in states.items():
        if (fault := _mismatch(state, like)) is not None:
            warn_rejected(f"client {client}", fault)
            continue
        rows.append(torch.cat([state[key].detach().reshape(-1) for key in like]))
        clients.append(client)
    d = sum(t.numel() for t in like.values())
    return (torch.stack(rows) if rows else torch.empty(0, d)), clients


def _mismatch(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str | None:
    if missing := [key for key in like if key not in state]:
        return f"it lacks {', '.join(missing)}"
    if extra := [key for key in state if key not in like]:
        return f"it has {', '.join(extra)}, which the model has not"
    for key, tensor in like.items():
        if state[key].shape != tensor.shape:
            return f"{key} has shape {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
    return None


def well_formed(updates: list[ClientUpdate], round: int, d: int, b: int) -> list[ClientUpdate]:
    received: list[ClientUpdate] = []
    for update in updates:
        fault = None
        if update.client_id in {u.client_id for u in received}:
            fault = "it is the second one of this client"
        for name, found, length in (("delta", update.delta, d), ("buffers", update.buffers, b)):
            if found.shape != (length,):
                fault = f"its {name} has shape {tuple(found.shape)}, not ({length},)"
        if fault is None:
            received.append(update)
        else:
            warn_rejected(f"client {update.client_id} in round {round}", fault)
    for part in ("delta", "buffers"):
        if received:
            rows = torch.stack([getattr(u, part) for u in received])
            weights = torch.tensor([float(u.num_examples) for u in received])
            names = [f"client {u.client_id} in round {round}" for u in received]
            keep = reject(rows, weights, names)
            received = [received[i] for i in keep]
    return received
