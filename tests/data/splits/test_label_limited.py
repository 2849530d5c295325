"""Each client owns c classes, and the classes are shared out evenly."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import IID, ConfigError, Dirichlet, LabelLimited
from leadfl_pl.data.splits import label_counts
from leadfl_pl.data.splits.label_limited import choose_classes

LABELS = torch.arange(600) % 10


@pytest.mark.parametrize("c", [1, 2, 3, 10])
def test_every_client_has_exactly_c_classes(c: int) -> None:
    counts = label_counts(LABELS, LabelLimited(c)(LABELS, 20, seed=0))
    assert (counts > 0).sum(dim=1).tolist() == [c] * 20


@pytest.mark.parametrize("neighbour", [IID(), Dirichlet(beta=0.5)])
def test_its_neighbours_do_not_limit_the_classes(neighbour) -> None:
    counts = label_counts(LABELS, neighbour(LABELS, 20, seed=0))
    assert (counts > 0).sum(dim=1).max() > 3


def test_a_class_is_dealt_out_equally_by_hand() -> None:
    # 4 clients x 1 class: two own class 0 (6 examples, 3 each), two own class 1 (2, 1 each)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    counts = label_counts(labels, LabelLimited(1)(labels, 4, seed=0))
    assert sorted(counts.tolist()) == [[0, 1], [0, 1], [3, 0], [3, 0]]


@pytest.mark.parametrize(("num_clients", "num_classes", "c"), [(7, 10, 3), (5, 10, 2), (30, 4, 3)])
def test_the_numbers_of_owners_differ_by_at_most_one(
    num_clients: int, num_classes: int, c: int
) -> None:
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        owners = choose_classes(num_clients, num_classes, c, rng).sum(dim=0)
        assert owners.max() - owners.min() <= 1
        assert owners.min() >= 1


def test_niid_benchs_choice_is_not_as_even() -> None:
    rng = torch.Generator().manual_seed(0)
    owns = torch.zeros(30, 10, dtype=torch.bool)
    for k in range(30):  # class k mod C, and another one drawn uniformly
        others = [j for j in range(10) if j != k % 10]
        owns[k, [k % 10, others[int(torch.randint(9, (), generator=rng))]]] = True
    assert owns.sum(dim=0).max() - owns.sum(dim=0).min() > 1


def test_the_classes_of_a_client_are_not_neighbours_in_number() -> None:
    chosen = {
        tuple(row.nonzero().flatten().tolist())
        for row in label_counts(LABELS, LabelLimited(2)(LABELS, 20, seed=0))
    }
    assert len(chosen) > 8  # of the 20 draws; blocks of the sorted labels would give 5


def test_a_class_with_fewer_examples_than_owners_leaves_some_with_fewer_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 2)
    counts = label_counts(labels, LabelLimited(2)(labels, 5, seed=0))
    assert sorted(counts[:, 1].tolist()) == [0, 0, 0, 1, 1]
    assert counts[:, 0].tolist() == [10] * 5


@pytest.mark.parametrize(
    ("c", "labels", "num_clients", "message"),
    [
        (11, LABELS, 20, "labels_per_client must be <= 10, the number of classes .* got "
                         "labels_per_client = 11"),
        (2, LABELS, 4, r"num_clients = 4 leaves classes without a client: 4 x 2 must be >= 10"),
        (1, torch.tensor([5, 5, -7]), 6, "of trainer.federation.num_clients = 6 without an "
                                         "example: there are 2 of class 5 for 3 clients"),
    ],
)  # fmt: skip
def test_what_cannot_be_dealt_is_refused_with_the_numbers(
    c: int, labels: torch.Tensor, num_clients: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelLimited(c)(labels, num_clients, seed=0)


def test_no_class_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be >= 1, got labels_per_client = 0"):
        LabelLimited(0)
