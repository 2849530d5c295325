"""Batches are cut from tensors: every image once, shared by the ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from leadfl_pl import Digits, FederatedClient
from leadfl_pl.data.base import ImageSet, TensorBatches, epoch_batches


def test_a_local_epoch_has_every_image_once_in_an_order_of_its_own() -> None:
    data = ImageSet(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    rng = torch.Generator().manual_seed(0)
    first, second = (epoch_batches(data, 4, rng) for _ in range(2))
    assert [len(y) for _, y in first] == [4, 4, 2]
    orders = [torch.cat([y for _, y in epoch]) for epoch in (first, second)]
    assert all(torch.equal(o.sort().values, torch.arange(10)) for o in orders)
    assert not torch.equal(*orders)
    assert all(torch.equal(x.flatten().long(), y) for x, y in first)


def test_batches_are_cut_in_order_or_in_a_new_order_each_time() -> None:
    data = ImageSet(torch.zeros(10, 1, 1, 1, dtype=torch.uint8), torch.arange(10))
    assert [y.tolist() for _, y in TensorBatches(data, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    batches = TensorBatches(data, 4, shuffle=True)
    first, second = (torch.cat([y for _, y in batches]) for _ in range(2))
    assert torch.equal(first.sort().values, torch.arange(10))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(10))


def loaders(world_size: int, mode: str = "eval", **trainer: object) -> list[TensorBatches]:
    """Those of all ranks, for six batches."""
    client = FederatedClient(nn.BatchNorm2d(1), evaluation_mode=mode)
    settings = {"limit_val_batches": 1.0, "limit_test_batches": 1.0} | trainer
    of_ranks = []
    for rank in range(world_size):
        module = Digits(eval_batch_size=60)
        module.setup()
        module.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, lightning_module=client, **settings
        )
        of_ranks.append(module.val_dataloader())
    return of_ranks


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_take_every_nth_of_the_batches_that_one_process_cuts(world_size: int) -> None:
    whole = [y for _, y in loaders(1)[0]]
    for rank, loader in enumerate(loaders(world_size)):
        assert len(loader) == 6 // world_size
        expected = whole[rank::world_size]
        assert all(torch.equal(y, e) for (_, y), e in zip(loader, expected, strict=True))


@pytest.mark.parametrize("world_size", [4, 7])
def test_where_they_cannot_be_shared_equally_every_rank_has_all(world_size: int) -> None:
    assert [len(loader) for loader in loaders(world_size)] == [6] * world_size


@pytest.mark.parametrize("limit", [1, 3, 0.5])
def test_every_rank_has_the_batches_that_a_trainer_counts(limit: float) -> None:
    assert [len(loader) for loader in loaders(2, limit_val_batches=limit)] == [6, 6]


def test_tests_have_a_limit_of_their_own() -> None:
    module = Digits(eval_batch_size=60)
    module.setup()
    module.trainer = SimpleNamespace(
        global_rank=0, world_size=2, lightning_module=None,
        limit_val_batches=1.0, limit_test_batches=1,
    )  # fmt: skip
    assert len(module.val_dataloader()) == 3
    assert len(module.test_dataloader()) == 6


def test_where_evaluation_moves_buffers_every_rank_has_all() -> None:
    assert [len(loader) for loader in loaders(2, mode="train")] == [6, 6]
