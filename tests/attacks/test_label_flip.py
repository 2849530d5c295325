"""Label flipping, from one class to another and mirrored."""

from __future__ import annotations

import pytest
import torch

import leadfl_pl as fl

X, Y = torch.rand(4, 1, 8, 8), torch.tensor([3, 7, 3, 0])


def test_only_the_source_class_is_relabelled_and_no_pixel_changes() -> None:
    ((x, y),) = fl.LabelFlip(source=3, target=7).tasks(X, Y)
    assert torch.equal(x, X)
    assert y.tolist() == [7, 7, 7, 0]
    assert Y.tolist() == [3, 7, 3, 0]


def test_without_classes_label_l_becomes_c_minus_1_minus_l() -> None:
    ((x, y),) = fl.LabelFlip().tasks(X, Y)
    assert torch.equal(x, X)
    assert y.tolist() == [6, 2, 6, 9]


def test_mirroring_twice_is_honest() -> None:
    labels = torch.arange(10)
    assert torch.equal(fl.LabelFlip().flip(fl.LabelFlip().flip(labels)), labels)


def test_evaluation_counts_untouched_images_of_the_source_class() -> None:
    x, wanted, counts = fl.LabelFlip(source=3, target=7).trigger(X, Y)
    assert torch.equal(x, X)
    assert wanted.tolist() == [7, 7, 7, 7]
    assert counts.tolist() == [True, False, True, False]


def test_evaluation_of_mirrored_labels_leaves_out_the_middle_class() -> None:
    _, wanted, counts = fl.LabelFlip(num_classes=5).trigger(X[:3], torch.tensor([0, 2, 3]))
    assert wanted.tolist() == [4, 2, 1]
    assert counts.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("source", "target"), [(3, None), (None, 7), (3, 3)], ids=["source", "target", "same"]
)
def test_one_class_alone_or_the_same_twice_is_refused(source, target) -> None:
    with pytest.raises(fl.ConfigError, match=f"got source = {source} and target = {target}"):
        fl.LabelFlip(source, target)


def test_what_does_not_fit_the_data_is_refused() -> None:
    with pytest.raises(
        fl.ConfigError, match=r"source must be a class in 0 \.\. 9, got source = 10"
    ):
        fl.LabelFlip(source=10, target=1).check((1, 8, 8), 10)
    with pytest.raises(fl.ConfigError, match="num_classes must be 100, as the data has, got num"):
        fl.LabelFlip().check((3, 32, 32), 100)
