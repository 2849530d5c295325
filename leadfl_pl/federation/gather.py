"""Several processes: who trains whom, and how the updates of a round come together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.values import ClientUpdate, Cohort
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.federation.clients import Clients


def assign(costs: Sequence[float], world_size: int) -> list[list[int]]:
    """Which clients each rank trains, the longest first.

    In each wave the ranks take the longest of the clients that are left, the least loaded rank the
    longest of them; so no rank has more than one client more than another.

    >>> assign([1.0, 5.0, 2.0, 4.0, 1.0], world_size=2)
    [[1, 0, 4], [3, 2]]

    Args:
        costs: of each client, in any unit.
        world_size: number of ranks.

    Returns:
        For each rank positions in ``costs``.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    assignment: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for start in range(0, len(order), world_size):
        ranks = sorted(range(world_size), key=lambda r: (loads[r], r))
        for rank, client in zip(ranks, order[start : start + world_size], strict=False):
            assignment[rank].append(client)
            loads[rank] += costs[client]
    return assignment


def no_hooks(cohort: Cohort, wave: int, position: int | None) -> AbstractContextManager[None]:
    """Nobody listens to the training of a client."""
    return nullcontext()


def train_cohort(
    clients: Clients,
    cohort: Cohort,
    last_update: Tensor | None,
    hooks: Callable[[Cohort, int, int | None], AbstractContextManager[None]] = no_hooks,
) -> list[ClientUpdate]:
    """Trains the cohort's clients, this rank's share here, and returns all that were sent.

    Args:
        clients: of the run.
        cohort: of the round.
        last_update: the server's last step (d,), which every client has seen.
        hooks: entered as often on every rank: with the cohort, the wave, and the position of the
            client that trains within, None where this rank has no client left.
    """
    strategy = clients.client.trainer.strategy
    rank, world_size = clients.client.trainer.global_rank, clients.client.trainer.world_size
    assignment = assign(clients.costs(cohort), world_size)
    mine: list[int | None] = [*assignment[rank]]
    mine += [None] * (max(map(len, assignment)) - len(mine))
    training = clients.train(cohort, assignment[rank], last_update)
    updates: dict[int, ClientUpdate | None] = {}
    for wave, position in enumerate(mine):
        with hooks(cohort, wave, position):
            if position is not None:
                updates[position] = next(training)
    if world_size > 1:
        updates = gather_updates(
            updates, cohort, assignment, clients.vector, clients.momentum_size, strategy
        )
    check_clients(updates, cohort, clients.last_error)
    sent = [u for position in range(len(updates)) if (u := updates[position]) is not None]
    clients.keep_momentum(sent)
    return sent


def gather_updates(
    updates: Mapping[int, ClientUpdate | None],
    cohort: Cohort,
    assignment: Sequence[Sequence[int]],
    vector: ModelVector,
    momentum_size: int,
    strategy: Strategy,
) -> dict[int, ClientUpdate | None]:
    """The updates of all ranks by position in the cohort, given this rank's, in one collective.

    Args:
        updates: of this rank; None for a client that failed.
        cohort: of the round.
        assignment: see :func:`assign`.
        vector: of the model.
        momentum_size: m, 0 where no momentum is carried.
        strategy: whose ranks.
    """
    rows = [pack(update) for update in updates.values() if update is not None]
    length = vector.d + vector.b + momentum_size + 3
    wide = torch.promote_types(vector.dtype, torch.float32)
    sent = torch.zeros(max(map(len, assignment)), length, dtype=wide, device=vector.device)
    places = [i for i, update in enumerate(updates.values()) if update is not None]
    if rows:
        sent[places] = torch.stack(rows)
    received = strategy.all_gather(sent)  # (ranks, waves, length)
    return {
        position: unpack(row, cohort.client_ids[position], vector)
        for positions, of_rank in zip(assignment, received, strict=True)
        for position, row in zip(positions, of_rank, strict=False)
    }


def check_clients(
    updates: Mapping[int, ClientUpdate | None], cohort: Cohort, error: str | None
) -> None:
    """Raises if all clients of a kind failed in the first round: that is their method's error.

    Args:
        updates: by position in the cohort; None for a client that failed.
        cohort: of the round.
        error: what a client raised that this process trained, and where.
    """
    if cohort.round > 0:
        return
    for kind in set(cohort.malicious):
        members = [position for position, m in enumerate(cohort.malicious) if m == kind]
        if all(updates[position] is None for position in members):
            raise ConfigError(
                f"all {len(members)} {'malicious' if kind else 'honest'} clients failed in the "
                f"first round, with {error or 'an error in another process'}"
            )


def pack(update: ClientUpdate) -> Tensor:
    """An update as one row (d + b + m + 3,)."""
    size = torch.tensor(update.num_examples, device=update.delta.device)
    momentum = [] if update.momentum is None else [update.momentum]
    scalars = [t.to(update.delta.dtype).reshape(1) for t in (size, update.loss, update.regulariser)]
    return torch.cat([update.delta, update.buffers, *momentum, *scalars])


def unpack(row: Tensor, client_id: int, vector: ModelVector) -> ClientUpdate | None:
    """The update in a row that :func:`pack` made; None for a client that failed, in a row of 0."""
    d, b = vector.d, vector.b
    size, loss, regulariser = row[-3:]
    if size == 0:
        return None
    momentum = row[d + b : -3]
    return ClientUpdate(
        client_id,
        row[:d],
        row[d : d + b],
        int(size),
        loss,
        regulariser,
        momentum if len(momentum) else None,
    )
