"""Any data set of (image, label): every kind of image becomes the same tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from torchvision import transforms
from torchvision.datasets import FakeData

from leadfl_pl import ConfigError, TorchvisionData
from leadfl_pl.cli.main import main
from leadfl_pl.data.torchvision_sets import read_image

COLOUR = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)  # H, W, C
GREY = COLOUR[..., 0]


class Pairs(Dataset):
    """A map-style data set of what it is given."""

    def __init__(self, *pairs: object) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> object:
        return self.pairs[index]


class Stream(IterableDataset):
    """A data set without a length."""

    def __iter__(self):
        yield GREY, 0


def loaded(train: object, test: object = None) -> TorchvisionData:
    module = TorchvisionData(train, train if test is None else test)
    module.setup()
    return module


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(COLOUR),
        Image.fromarray(COLOUR).convert("RGBA"),
        COLOUR,
        torch.from_numpy(COLOUR).permute(2, 0, 1),
    ],
    ids=["PIL", "PIL with alpha", "numpy", "tensor"],
)
def test_colour_is_channels_first(image: object) -> None:
    tensor = read_image(image)
    assert tensor.dtype == torch.uint8
    assert tensor.tolist() == COLOUR.transpose(2, 0, 1).tolist()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        GREY,
        GREY[..., None],
        torch.from_numpy(GREY.copy()),
        torch.from_numpy(GREY.copy()).unsqueeze(0),
    ],
    ids=["PIL", "numpy", "numpy with channel", "tensor", "tensor with channel"],
)
def test_grey_has_one_channel(image: object) -> None:
    assert read_image(image).tolist() == [GREY.tolist()]


def test_black_and_white_is_0_and_255() -> None:
    assert read_image(Image.new("1", (2, 1), 1)).tolist() == [[[255, 255]]]


def test_floats_stay_as_they_are_in_single_precision() -> None:
    tensor = read_image(torch.full((1, 2, 2), 0.25, dtype=torch.float64))
    assert tensor.dtype == torch.float32
    assert tensor.unique().tolist() == [0.25]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("I;16", (2, 2)), "got Image of mode I;16"),
        ("cat.png", "got str"),
        (np.zeros((2, 2), dtype=np.int64), r"uint8 or floating, .* got int64 of shape \(1, 2, 2\)"),
        (torch.zeros(2, 2, 2, 2), "2 or 3 dimensions, got float32"),
    ],
)
def test_what_is_no_image_is_refused(image: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_image(image)


def test_shape_and_classes_come_from_the_data() -> None:
    module = loaded(Pairs((COLOUR, 0), (COLOUR, np.int64(2))), Pairs((COLOUR, torch.tensor(4))))
    assert module.image_shape == (3, 2, 3)
    assert module.num_classes == 5
    assert module.train_set.labels.tolist() == [0, 2]
    assert module.train_set.labels.dtype == torch.int64


def test_a_class_that_occurs_in_neither_set_counts_if_it_has_a_name() -> None:
    named = Pairs((GREY, 0), (GREY, 1))
    named.classes = ["a", "b", "c"]
    assert loaded(named).num_classes == 3


def test_images_are_those_of_the_data_set_in_its_order() -> None:
    fake = FakeData(6, (3, 5, 7), 3)
    module = loaded(fake)
    for i, (image, label) in enumerate(fake[j] for j in range(6)):
        assert torch.equal(module.train_set.images[i], transforms.functional.pil_to_tensor(image))
        assert module.train_set.labels[i] == label


FLIPS = [transforms.RandomHorizontalFlip(p) for p in (0, 1)]


@pytest.mark.parametrize("transform", [transforms.RandomCrop(4), transforms.RandomChoice(FLIPS)])
def test_a_random_transform_is_drawn_once_and_the_same_in_every_run(transform) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = loaded(FakeData(6, (3, 9, 9), transform=transform))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = loaded(FakeData(6, (3, 9, 9), transform=transform))
    assert torch.equal(first.train_set.images, second.train_set.images)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Pairs((COLOUR, 0), (COLOUR, 0), (GREY, 1)),
         r"data.train = Pairs: .* image 2 is uint8 of shape \(1, 2, 3\) and image 0 is .*3, 2"),
        (Pairs((GREY, 0), (GREY.astype(np.float32), 0)), "image 1 is float32 of shape .* and"),
        (Pairs(), "data.train = Pairs has no images"),
        (Pairs((GREY, 0, 1)), "example 0 must be a pair of an image and a class"),
        (Pairs((GREY, -1)), "must be a whole number >= 0, got -1"),
        (Pairs((GREY, 0), (GREY, "cat")), "example 1 .* a class must be a whole number .* 'cat'"),
        (Pairs((GREY, 0.5)), "a class must be a whole number >= 0, got 0.5"),
        (Pairs((GREY, torch.tensor([0, 1]))), "example 0 must be a pair"),
        (Stream(), "data.train must be a map-style data set, .* got Stream"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_the_example(train: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(train)


def test_train_and_test_must_have_images_of_one_size_and_type() -> None:
    with pytest.raises(
        ConfigError, match=r"test images .* \(N, 3, 2, 3\), got uint8 of .*1, 2, 3\)"
    ):
        loaded(Pairs((COLOUR, 0)), Pairs((GREY, 0)))
    with pytest.raises(ConfigError, match=r"of one dtype, got uint8 of .* and float32"):
        loaded(Pairs((GREY, 0)), Pairs((GREY.astype(np.float32), 0)))


SMALL = [
    "--trainer.max_epochs=1",
    "--trainer.federation.local_epochs=1",
    "--trainer.federation.clients_per_round=6",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--model.model=CIFAR10Net",
]


@pytest.mark.parametrize(
    "flags",
    [
        [
            *("--data", "leadfl_pl.TorchvisionData"),
            *("--data.train", "torchvision.datasets.FakeData"),
            *("--data.train.size", "200", "--data.train.image_size", "[3,32,32]"),
            *("--data.test", "torchvision.datasets.FakeData"),
            *("--data.test.size", "20", "--data.test.image_size", "[3,32,32]"),
        ],
        [f"--data={ROOT / 'configs/data/torchvision.yaml'}"],
    ],
    ids=["flags", "file"],
)
def test_a_data_set_is_a_class_path_away(flags: list[str]) -> None:
    assert main(["fit", f"--config={ROOT / 'configs/quickstart.yaml'}", *flags, *SMALL]) == 0
    (saved,) = Path("runs/quickstart/logs").glob("*/config.yaml")
    train = yaml.safe_load(saved.read_text())["data"]["init_args"]["train"]
    assert train["class_path"] == "torchvision.datasets.FakeData"
    assert train["init_args"]["size"] == 200


def test_sets_that_name_other_classes_are_refused() -> None:
    train, test = (Pairs((GREY, 0), (GREY, 1), (GREY, 2)) for _ in range(2))
    train.classes, test.classes = ["bird", "cat", "dog"], ["bird", "dog"]
    message = "data.test must have the classes of data.train, got dog as class 1 in place of cat"
    with pytest.raises(ConfigError, match=message):
        loaded(train, test)
    for names in (train.classes, train.classes[:2]):
        test.classes = names
        assert loaded(train, test).num_classes == 3
