"""What every split keeps, whatever the labels, the number of clients and the seed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import leadfl_pl
from leadfl_pl import ConfigError, Split
from leadfl_pl.data.splits import label_counts, summary


def spread(values: Tensor) -> int:
    return int(values.max() - values.min())


class Line(NamedTuple):
    """A split, and what its counts (K, C) of 2,000 examples in 10 classes show and no other's."""

    split: Split
    mark: Callable[[Tensor], bool]


WHOLE = {0, 50, 100}  # 40 shards of 50
TABLE = {
    "IID": Line(
        leadfl_pl.IID(),
        lambda counts: spread(counts.sum(1)) <= 1 and bool((counts > 0).all()),
    ),
    "LabelLimited": Line(
        leadfl_pl.LabelLimited(3),
        lambda counts: ((counts > 0).sum(1) == 3).all() and spread((counts > 0).sum(0)) <= 1,
    ),
    "Dirichlet": Line(
        leadfl_pl.Dirichlet(0.5),
        lambda counts: spread(counts.sum(1)) > 50 and not mixes_differ_by_chance_only(counts),
    ),
    "Shards": Line(
        leadfl_pl.Shards(2),
        lambda counts: (counts.sum(1) == 100).all() and set(counts.flatten().tolist()) <= WHOLE,
    ),
    "QuantitySkew": Line(
        leadfl_pl.QuantitySkew(1.0),
        lambda counts: spread(counts.sum(1)) > 50 and mixes_differ_by_chance_only(counts),
    ),
    "Natural": Line(
        leadfl_pl.Natural(torch.arange(20).repeat_interleave(torch.arange(81, 121, 2))),
        lambda counts: counts.sum(1).sort().values.tolist() == list(range(81, 121, 2)),
    ),
}
SPLITS = [  # Natural is of one data set: test_natural.py
    pytest.param(line.split, id=name) for name, line in TABLE.items() if name != "Natural"
]
quickly = settings(max_examples=25, deadline=None, database=None, derandomize=True)
labels_lists = st.lists(st.integers(-3, 6), min_size=1, max_size=120)
seeds = st.integers(0, 2**31)


def mixes_differ_by_chance_only(counts: Tensor) -> bool:
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    large = expected.min(dim=1).values >= 5
    chi2 = ((counts - expected) ** 2 / expected)[large].sum()
    freedom = int(large.sum()) * (counts.shape[1] - 1)
    return bool(chi2 < freedom + 6 * (2 * freedom) ** 0.5)


def attempt(split: Split, labels: Tensor, num_clients: int, seed: int) -> list[Tensor] | None:
    """The parts, or None if the split says that these labels cannot be dealt like this."""
    try:
        return split(labels, num_clients, seed)
    except ConfigError:
        return None


def test_every_split_of_the_package_has_a_line() -> None:
    for module in pkgutil.walk_packages(leadfl_pl.__path__, "leadfl_pl."):
        if module.name.startswith("leadfl_pl.data.splits"):
            importlib.import_module(module.name)
    names, queue = set(), [Split]
    while queue:
        subclasses = queue.pop().__subclasses__()
        queue += subclasses
        names |= {c.__name__ for c in subclasses if c.__module__.startswith("leadfl_pl.")}
    assert names == set(TABLE)
    assert all(type(line.split).__name__ == name for name, line in TABLE.items())
    assert names <= set(leadfl_pl.__all__)


@pytest.mark.parametrize("split", [line.split for line in TABLE.values()], ids=TABLE)
def test_every_setting_can_be_read_back(split: Split) -> None:
    parameters = inspect.signature(type(split)).parameters
    assert set(parameters) - {"args", "kwargs"} == vars(split).keys()


@pytest.mark.parametrize("split", SPLITS)
@quickly
@given(labels=labels_lists, num_clients=st.integers(1, 12), seed=seeds)
def test_every_example_is_in_exactly_one_client_and_no_client_is_empty(
    split: Split, labels: list[int], num_clients: int, seed: int
) -> None:
    if (parts := attempt(split, torch.tensor(labels), num_clients, seed)) is not None:
        assert len(parts) == num_clients
        assert all(len(part) > 0 and part.dtype == torch.int64 for part in parts)
        assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))


@pytest.mark.parametrize("split", SPLITS)
@quickly
@given(num_clients=st.integers(4, 12), num_classes=st.integers(3, 8), seed=seeds)
def test_what_can_be_dealt_is_dealt(
    split: Split, num_clients: int, num_classes: int, seed: int
) -> None:
    assert attempt(split, torch.arange(400) % num_classes, num_clients, seed) is not None


@pytest.mark.parametrize("split", SPLITS)
@quickly
@given(num_clients=st.integers(4, 12), seed=seeds)
def test_the_seed_decides_and_nothing_else_is_touched(
    split: Split, num_clients: int, seed: int
) -> None:
    labels = torch.arange(300) % 7
    kept = labels.clone()
    torch.manual_seed(seed % 97)
    np.random.seed(seed % 97)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = split(labels, num_clients, seed)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(labels, kept)
    torch.rand(1), np.random.rand(1)
    again, other = split(labels, num_clients, seed), split(labels, num_clients, seed + 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("split", SPLITS)
@quickly
@given(order=st.permutations(range(60)), seed=seeds)
def test_the_order_of_the_file_changes_no_clients_number_of_examples(
    split: Split, order: list[int], seed: int
) -> None:
    labels = torch.arange(60) % 3
    plain, shuffled = split(labels, 5, seed), split(labels[torch.tensor(order)], 5, seed)
    assert [len(p) for p in plain] == [len(p) for p in shuffled]


@pytest.mark.parametrize("split", SPLITS)
@quickly
@given(shift=st.integers(-1000, 1000), scale=st.integers(1, 50), seed=seeds)
def test_what_the_classes_are_called_changes_nothing(
    split: Split, shift: int, scale: int, seed: int
) -> None:
    labels = torch.arange(200) % 6
    plain, renamed = split(labels, 5, seed), split(labels * scale + shift, 5, seed)
    assert all(torch.equal(a, b) for a, b in zip(plain, renamed, strict=True))


@pytest.mark.parametrize("name", TABLE)
def test_its_mark_tells_it_from_every_other_split(name: str) -> None:
    labels = torch.arange(2000) % 10
    line = TABLE[name]
    for seed in range(5):
        for other, neighbour in TABLE.items():
            counts = label_counts(labels, neighbour.split(labels, 20, seed))
            assert bool(line.mark(counts)) == (other == name), f"{other}, seed {seed}"


@quickly
@given(num_clients=st.integers(3, 12), seed=seeds)
def test_a_tiny_beta_is_much_further_from_iid_than_a_large_one(num_clients: int, seed: int) -> None:
    labels = torch.arange(3000) % 10
    far, near = (
        summary(labels, leadfl_pl.Dirichlet(beta)(labels, num_clients, seed))["label_distance"]
        for beta in (0.1, 1000.0)
    )
    assert far > 0.3 > 0.05 > near


@quickly
@given(c=st.integers(1, 5), num_clients=st.integers(5, 12), seed=seeds)
def test_label_limited_clients_have_c_labels_where_dirichlet_and_iid_have_more(
    c: int, num_clients: int, seed: int
) -> None:
    labels = torch.arange(1000) % 5
    for split, limited in (
        (leadfl_pl.LabelLimited(c), True),
        (leadfl_pl.Dirichlet(10.0), c == 5),
        (leadfl_pl.IID(), c == 5),
    ):
        held = (label_counts(labels, split(labels, num_clients, seed)) > 0).sum(1)
        assert bool((held == c).all()) == limited
