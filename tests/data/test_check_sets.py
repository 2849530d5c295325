"""A data module that loads something else than it must is refused in setup."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import ConfigError, FederatedDataModule, ImageSet

X, Y = torch.rand(6, 1, 8, 8), torch.arange(6)
GOOD = ImageSet(X, Y)


class Mine(FederatedDataModule):
    """A data set that is what it is given."""

    image_shape = (1, 8, 8)
    num_classes = 6

    def __init__(self, sets: object, **settings: int) -> None:
        super().__init__(**settings)
        self.sets = sets

    def load(self):
        return self.sets


def spoilt(value: float, *places: int) -> ImageSet:
    images = X.clone()
    for place in places:
        images[place, 0, 3, 3] = value
    return ImageSet(images, Y)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (None, "Mine.load must return two ImageSet, got None"),
        (GOOD, r"two ImageSet, got ImageSet\(float32 of shape \(6, 1, 8, 8\), int64"),
        (((X, Y), (X, Y)), "two ImageSet, got tuple"),
        ((GOOD, ImageSet(X[:, 0], Y)),
         r"Mine.load must return test images as a tensor of shape \(N, 1, 8, 8\), got float32"),
        ((ImageSet(X.long(), Y), GOOD), "training images as a tensor of uint8 or float32"),
        ((ImageSet(X, Y[:5]), GOOD), r"training labels as a tensor of shape \(6,\), got int64"),
        ((GOOD, ImageSet(X, Y.int())), "test labels as a tensor of int64, got int32"),
        ((GOOD, ImageSet(X[:0], Y[:0])), "Mine.load must return test images, got an empty set"),
        ((spoilt(float("nan"), 4, 2), GOOD), "training images of finite .* in image 2"),
        ((GOOD, spoilt(-float("inf"), 5)), "test images of finite .* got NaN or Inf in image 5"),
        ((GOOD, ImageSet(X, Y + 1)), r"test labels in 0 \.\. 5, got 6 for image 5"),
        ((ImageSet(X, Y - 1), GOOD), r"training labels in 0 \.\. 5, got -1 for image 0"),
        ((GOOD, ImageSet(X.to(torch.uint8), Y)), "of one dtype, got float32 .* and uint8"),
    ],
)  # fmt: skip
def test_setup_says_what_is_wrong_and_where(sets: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mine(sets).setup()


def test_a_module_must_say_its_shape_and_classes() -> None:
    class Shapeless(FederatedDataModule):
        num_classes = 6

        def load(self):
            return GOOD, GOOD

    with pytest.raises(ConfigError, match="Shapeless must define image_shape"):
        Shapeless().setup()


def test_what_is_right_is_kept() -> None:
    module = Mine((GOOD, GOOD))
    module.setup()
    assert module.train_set.images is X


@pytest.mark.parametrize("value", [0, 2.5, float("inf"), True])
def test_a_batch_size_must_be_a_whole_number_above_zero(value: object) -> None:
    for key in ("batch_size", "eval_batch_size"):
        with pytest.raises(ConfigError, match=f"data.{key} must be .*, got {key} = {value}"):
            Mine((GOOD, GOOD), **{key: value})
