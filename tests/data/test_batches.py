"""Batches are cut from tensors: every image once, dealt out over the ranks."""

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
    shuffled = torch.cat([y for _, y in TensorBatches(data, 4, shuffle=True)])
    assert torch.equal(shuffled.sort().values, torch.arange(10))


def loaders(
    world_size: int, net: nn.Module | None = None, mode: str = "eval", **trainer: object
) -> list[TensorBatches]:
    """Those of all ranks of a federation, for six batches."""
    client = FederatedClient(net or nn.BatchNorm2d(1), evaluation_mode=mode)
    settings = {"limit_val_batches": 1.0, "limit_test_batches": 1.0, "federation": None} | trainer
    settings = {key: value for key, value in settings.items() if value != "missing"}
    found = []
    for rank in range(world_size):
        module = Digits(eval_batch_size=60)
        module.setup()
        module.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, lightning_module=client, **settings
        )
        found.append(module.val_dataloader())
    return found


@pytest.mark.parametrize(("world_size", "counts"), [(1, [6]), (2, [3, 3]), (4, [2, 2, 1, 1])])
def test_ranks_share_out_the_batches_as_one_process_cuts_them(
    world_size: int, counts: list[int]
) -> None:
    (whole,) = loaders(1)
    dealt = loaders(world_size)
    assert [len(loader) for loader in dealt] == counts
    batches = {place: y for r in dealt for place, (_, y) in zip(r.places, r, strict=True)}
    expected = dict(enumerate(y for _, y in whole))
    assert batches.keys() == expected.keys()
    assert all(torch.equal(y, expected[place]) for place, y in batches.items())


def test_no_rank_is_without_a_batch() -> None:
    assert [len(loader) for loader in loaders(7)] == [6] * 7


@pytest.mark.parametrize("limit", [1, 3, 0.5])
def test_every_rank_has_the_batches_that_a_trainer_counts(limit: float) -> None:
    assert [len(loader) for loader in loaders(2, limit_val_batches=limit)] == [6, 6]


def test_tests_have_a_limit_of_their_own() -> None:
    module = Digits(eval_batch_size=60)
    module.setup()
    module.trainer = SimpleNamespace(
        global_rank=0, world_size=2, lightning_module=None, federation=None,
        limit_val_batches=1.0, limit_test_batches=1,
    )  # fmt: skip
    assert len(module.val_dataloader()) == 3
    assert len(module.test_dataloader()) == 6


@pytest.mark.parametrize(("mode", "count"), [("eval", 3), ("train", 6)])
def test_where_other_layers_move_every_rank_sees_all(mode: str, count: int) -> None:
    net = nn.InstanceNorm2d(1, track_running_stats=True)
    assert [len(loader) for loader in loaders(2, net, mode)] == [count, count]
    assert [len(loader) for loader in loaders(2, nn.BatchNorm2d(1), mode)] == [3, 3]


@pytest.mark.parametrize(
    ("world_size", "mode", "count"), [(2, "eval", 3), (4, "eval", 6), (2, "train", 6)]
)
def test_ranks_of_a_plain_trainer_have_equally_many_batches(
    world_size: int, mode: str, count: int
) -> None:
    found = loaders(world_size, mode=mode, federation="missing")
    assert [len(loader) for loader in found] == [count] * world_size
