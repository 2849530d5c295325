"""Blocks of the sorted training set, dealt at random."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import ConfigError, QuantitySkew, Shards
from leadfl_pl.data.splits import label_counts

LABELS = torch.arange(400) % 10


def test_mcmahans_200_shards_give_most_clients_two_digits() -> None:
    labels = torch.arange(60000) % 10
    counts = label_counts(labels, Shards(2)(labels, 100, seed=0))
    assert set(counts.sum(dim=1).tolist()) == {600}
    assert set(counts.flatten().tolist()) == {0, 300, 600}
    held = (counts > 0).sum(dim=1)
    assert 1 <= held.min() <= held.max() == 2
    assert held.double().mean() > 1.8  # (200 - 20) / 199 = 0.905 have two


def test_sizes_differ_by_at_most_the_number_of_shards() -> None:
    labels = torch.arange(403) % 10
    sizes = [len(p) for p in Shards(3)(labels, 10, seed=0)]
    assert max(sizes) - min(sizes) <= 3
    sizes = [len(p) for p in QuantitySkew(1.0)(labels, 10, seed=0)]
    assert max(sizes) - min(sizes) > 3


def test_a_shard_is_a_block_of_the_sorted_labels_by_hand() -> None:
    # sorted 0 0 0 1 1 2 2 2, cut in four by twos: 00 | 01 | 12 | 22
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2])
    parts = Shards(1)(labels, 4, seed=0)
    assert sorted(sorted(labels[p].tolist()) for p in parts) == [[0, 0], [0, 1], [1, 2], [2, 2]]


def test_examples_of_a_class_are_not_in_file_order() -> None:
    blocks = [p.tolist() for p in Shards(1)(torch.zeros(100), 4, seed=0)]
    assert all(max(b) - min(b) > 25 for b in blocks)


def test_shards_are_dealt_at_random() -> None:
    first = [int(LABELS[p[0]]) for p in Shards(1)(LABELS, 10, seed=0)]
    assert sorted(first) == list(range(10)) != first


def test_more_shards_than_examples_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        ConfigError, match=r"num_clients = 201 makes 402 shards of 400 training examples"
    ):
        Shards(2)(LABELS, 201, seed=0)


def test_no_shard_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be >= 1, got shards_per_client = 0"):
        Shards(0)
