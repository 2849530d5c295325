"""Batches are cut from tensors: every image once, the same number on every rank."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from leadfl_pl import Digits
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


def test_a_number_of_batches_can_be_asked_for() -> None:
    data = ImageSet(torch.zeros(10, 1, 1, 1, dtype=torch.uint8), torch.arange(10))
    assert [y.tolist() for _, y in TensorBatches(data, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    sizes = [len(y) for _, y in TensorBatches(data, 4, count=4)]
    assert sizes == [3, 3, 2, 2]
    shuffled = torch.cat([y for _, y in TensorBatches(data, 4, shuffle=True)])
    assert torch.equal(shuffled.sort().values, torch.arange(10))


def test_ranks_share_out_the_test_set_in_equally_many_batches() -> None:
    class Rank(Digits):
        def __init__(self, rank: int) -> None:
            super().__init__(eval_batch_size=60)
            self.trainer = SimpleNamespace(global_rank=rank, world_size=7, lightning_module=None)

    loaders = []
    for rank in range(7):
        module = Rank(rank)
        module.setup()
        loaders.append(module.val_dataloader())
    assert {len(list(loader)) for loader in loaders} == {1}
    assert sum(len(y) for loader in loaders for _, y in loader) == 360
