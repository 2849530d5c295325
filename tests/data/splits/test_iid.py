"""The split that published results were made with."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import IID, ConfigError, Digits


def test_iid_is_a_random_cover_that_the_seed_repeats() -> None:
    labels = torch.arange(1000) // 100
    parts = IID()(labels, 7, seed=1)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    assert {len(p) for p in parts} == {142, 143}
    assert all(torch.equal(a, b) for a, b in zip(parts, IID()(labels, 7, seed=1), strict=True))
    assert not torch.equal(parts[0], IID()(labels, 7, seed=2)[0])
    assert len(labels[parts[0]].unique()) == 10  # not a block of the sorted labels


def test_the_stream_is_the_one_that_published_results_were_drawn_from() -> None:
    parts = IID()(torch.zeros(10), 3, seed=3)
    assert [part.tolist() for part in parts] == [[5, 7, 9, 8], [1, 6, 0], [3, 4, 2]]


def test_the_labels_do_not_matter() -> None:
    first, second = (IID()(labels, 4, seed=0) for labels in (torch.zeros(50), torch.arange(50)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_empty_client_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="num_clients = 11 leaves client 10 without any"):
        IID()(torch.zeros(10), 11, seed=0)


def test_the_digits_carry_a_hundred_clients() -> None:
    module = Digits()
    module.setup()
    sizes = [len(p) for p in module.partition(100, seed=0)]
    assert (len(module.test_set.labels), sum(sizes), min(sizes)) == (360, 1437, 14)
    assert module.train_set.images.max() == 1.0
