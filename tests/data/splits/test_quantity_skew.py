"""Different sizes, the same mix of labels."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import ConfigError, Dirichlet, QuantitySkew
from leadfl_pl.core.rng import generator
from leadfl_pl.data.splits import summary
from leadfl_pl.data.splits.draws import draw_sizes

LABELS = torch.arange(5000) % 10


def test_sizes_differ_much_and_labels_little() -> None:
    skew = summary(LABELS, QuantitySkew(0.5, min_examples=50)(LABELS, 10, seed=0))
    assert skew["max_examples"] > 5 * skew["min_examples"]
    assert skew["label_distance"] < 0.1
    neighbour = summary(LABELS, Dirichlet(0.5)(LABELS, 10, seed=0))
    assert neighbour["label_distance"] > 0.3


def test_a_large_beta_gives_nearly_equal_sizes() -> None:
    skew = summary(LABELS, QuantitySkew(1e6)(LABELS, 10, seed=0))
    assert skew["max_examples"] - skew["min_examples"] <= 5


def test_the_shuffled_examples_are_cut_at_the_sizes_drawn() -> None:
    sizes = draw_sizes("QuantitySkew", [5000], 10, 1.0, 1, seed=4)[0].tolist()
    parts = QuantitySkew(1.0)(LABELS, 10, seed=4)
    assert [len(p) for p in parts] == sizes
    assert torch.equal(torch.cat(parts), torch.randperm(5000, generator=generator(4, "split")))


def test_the_labels_do_not_matter() -> None:
    first, second = (QuantitySkew(1.0)(y, 4, seed=0) for y in (LABELS, LABELS.flip(0) * 0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_cannot_be_drawn_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"QuantitySkew: .*num_clients = 100 .*beta = 0.01: the"):
        QuantitySkew(0.01)(LABELS, 100, seed=0)
