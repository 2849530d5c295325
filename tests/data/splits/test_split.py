"""The numbers that describe a split, by hand."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import IID, ConfigError, Digits, Split
from leadfl_pl.data.splits import check_split, label_counts, summary

LABELS = torch.tensor([7, -3, 7, 7, 40, -3])
PARTS = [torch.tensor([0, 2]), torch.tensor([1, 3, 4, 5])]


def test_columns_are_the_classes_present_in_rising_order() -> None:
    assert label_counts(LABELS, PARTS).tolist() == [[0, 2, 0], [2, 1, 1]]


def test_a_summary_by_hand() -> None:
    numbers = summary(LABELS, PARTS)
    # whole: 2/6, 3/6, 1/6; clients: 0, 1, 0 (distance 1/2) and 1/2, 1/4, 1/4 (distance 1/4)
    assert numbers == {
        "clients": 2.0,
        "min_examples": 2.0,
        "median_examples": 3.0,
        "max_examples": 4.0,
        "labels_per_client": 2.0,
        "label_distance": pytest.approx(3 / 8),
    }


def test_the_same_mix_everywhere_is_at_distance_0_whatever_the_sizes() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    parts = [torch.tensor([0, 1]), torch.tensor([2, 3, 4, 5])]
    assert summary(labels, parts)["label_distance"] == 0


def test_one_class_a_client_is_at_distance_1_minus_1_over_c() -> None:
    labels = torch.arange(20) % 5
    parts = [(labels == j).nonzero().flatten() for j in range(5)]
    assert summary(labels, parts)["label_distance"] == pytest.approx(0.8)


def test_a_client_without_examples_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ConfigError, match="num_clients = 2 leaves client 1 without any of the 6 training examples"
    ):
        check_split(IID(), [torch.arange(6), torch.arange(0)], 2, 6)


class Mine(Split):
    """A split that returns what it is given."""

    def __init__(self, parts: object) -> None:
        self.parts = parts

    def __call__(self, labels, num_clients, seed):
        return self.parts


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, "Mine must return 2 index tensors, one a client, got None"),
        ([torch.arange(1437)], "Mine must return 2 index tensors, one a client, got 1"),
        ([torch.arange(1436), [1436]], r"for client 1 a tensor of shape \(n,\), got list"),
        ([torch.arange(1436), torch.ones(1)], "for client 1 a tensor of int64, got float32"),
        ([torch.arange(1436), torch.tensor([1437])], r"indices in 0 \.\. 1436, got 0 \.\. 1437"),
        ([torch.arange(1437), torch.tensor([3])], "of the 1437 examples once, got example 3 2"),
        ([torch.arange(1435), torch.tensor([1436])], "got example 1435 0 times"),
    ],
)  # fmt: skip
def test_a_users_split_must_assign_every_example_once(parts: object, message: str) -> None:
    data = Digits(Mine(parts))
    data.setup()
    with pytest.raises(ConfigError, match=message):
        data.partition(2, seed=0)


def test_a_split_without_a_call_says_so() -> None:
    with pytest.raises(TypeError, match=r"abstract method '?__call__"):
        Split()
