"""Clients are assigned to ranks, and their updates come together as they were."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import NetWithBatchNorm

import leadfl_pl as fl
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.federation.gather import assign, gather_updates, pack, unpack


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 12])
def test_every_client_has_one_rank_and_the_longest_go_first_to_the_least_loaded(
    world_size: int,
) -> None:
    rng = torch.Generator().manual_seed(world_size)
    costs = (100 * torch.rand(10, generator=rng) ** 3).tolist()
    assignment = assign(costs, world_size)
    assert sorted(itertools.chain(*assignment)) == list(range(10))
    assert {len(positions) for positions in assignment} <= {10 // world_size, -(-10 // world_size)}
    for positions in assignment:
        assert [costs[p] for p in positions] == sorted((costs[p] for p in positions), reverse=True)

    def longest(assignment: list[list[int]]) -> float:
        return max(sum(costs[p] for p in positions) for positions in assignment)

    in_order = [list(range(rank, 10, world_size)) for rank in range(world_size)]
    assert longest(assignment) <= longest(in_order)


def update(client_id: int, vector: ModelVector, momentum: int = 0) -> fl.ClientUpdate:
    rng = torch.Generator().manual_seed(client_id)
    draw = [torch.rand(n, generator=rng) for n in (vector.d, vector.b, momentum)]
    loss, regulariser = torch.rand(2, generator=rng)
    carried = draw[2] if momentum else None
    return fl.ClientUpdate(
        client_id,
        draw[0],
        draw[1],
        20 + client_id,
        loss,
        regulariser,
        carried,
    )


def assert_same(one: fl.ClientUpdate, other: fl.ClientUpdate) -> None:
    for name, first, second in zip(one._fields, one, other, strict=True):
        same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
        assert same, name


@pytest.mark.parametrize("momentum", [0, 5])
def test_a_packed_update_is_unpacked_to_the_bit(momentum: int) -> None:
    vector = ModelVector(NetWithBatchNorm())
    sent = update(3, vector, momentum)
    received = unpack(pack(sent), 3, vector)
    assert received is not None
    assert_same(sent, received)


class Ranks:
    """A strategy whose ranks all send the same rows, but for those of a rank that has less."""

    def __init__(self, others: list[torch.Tensor]) -> None:
        self.others = others

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([rows, *self.others])


def test_the_updates_of_unequally_many_clients_come_together_and_a_failed_one_is_none() -> None:
    vector = ModelVector(NetWithBatchNorm())
    cohort = fl.Cohort(0, (7, 4, 9), (False, True, False))
    second = torch.zeros(2, vector.d + vector.b + 3)
    second[0] = pack(update(4, vector))
    gathered = gather_updates(
        {0: update(7, vector), 2: None}, cohort, [[0, 2], [1]], vector, 0, Ranks([second])
    )
    assert gathered[2] is None
    assert_same(gathered[0], update(7, vector))
    assert_same(gathered[1], update(4, vector))
