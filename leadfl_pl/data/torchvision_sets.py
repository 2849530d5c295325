"""Any data set of (image, label) pairs, as torchvision's are."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from leadfl_pl.core.errors import ConfigError, summarise
from leadfl_pl.core.rng import derive_seed, isolated_rng
from leadfl_pl.data.base import FederatedDataModule, ImageSet
from leadfl_pl.data.splits import Split

PLAIN_MODE = {"L": "L", "1": "L", "LA": "L", "RGB": "RGB", "P": "RGB", "RGBA": "RGB"}


def read_image(image: Any) -> Tensor:
    """A PIL image, array or tensor as (C, H, W), uint8 in 0 .. 255 or float32.

    Args:
        image: PIL; numpy (H, W) or (H, W, C); torch (H, W) or (C, H, W). uint8 or floating.

    Raises:
        ConfigError: it is none of these.

    >>> read_image(np.zeros((8, 9, 3), dtype=np.uint8)).shape
    torch.Size([3, 8, 9])
    """
    if isinstance(image, Image.Image) and image.mode in PLAIN_MODE:
        image = np.array(image.convert(PLAIN_MODE[image.mode]))
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(image)
        tensor = tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor
    elif isinstance(image, Tensor):
        tensor = image.as_subclass(Tensor).detach().cpu()
    else:
        mode = f" of mode {image.mode}" if isinstance(image, Image.Image) else ""
        raise ConfigError(
            "an image must be a PIL image (grey or RGB), an array (H, W[, C]) or a tensor "
            f"([C, ]H, W), got {type(image).__name__}{mode}"
        )
    tensor = tensor.unsqueeze(0) if tensor.ndim == 2 else tensor
    if tensor.ndim != 3 or not (tensor.dtype == torch.uint8 or tensor.is_floating_point()):
        raise ConfigError(
            f"an image must be uint8 or floating, with 2 or 3 dimensions, got {summarise(tensor)}"
        )
    return tensor.float() if tensor.is_floating_point() else tensor


def read_images(dataset: Any, key: str) -> ImageSet:
    """All of a map-style data set of (image, label) in memory.

    A random transform is applied once to each image, with the same draws in every run.

    Args:
        dataset: with ``len()`` and ``[i]``; labels are whole numbers >= 0.
        key: of the setting, for messages.

    Raises:
        ConfigError: no map-style data set, an empty one, something else than an (image, label)
            pair, or two images of different sizes.
    """
    if not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
        raise ConfigError(
            f"{key} must be a map-style data set, with a length, got {type(dataset).__name__}"
        )
    owner = f"{key} = {type(dataset).__name__}"
    if len(dataset) == 0:
        raise ConfigError(f"{owner} has no images")
    images, labels = torch.empty(0), torch.empty(len(dataset), dtype=torch.int64)
    with isolated_rng(derive_seed(0, "transforms")):
        for i in range(len(dataset)):
            try:
                image, label = dataset[i]
                tensor, labels[i] = read_image(image), class_number(label)
            except (ConfigError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{owner}: example {i} must be a pair of an image and a class: {error}"
                ) from error
            if i == 0:
                images = tensor.new_empty((len(dataset), *tensor.shape))
            if tensor.shape != images.shape[1:] or tensor.dtype != images.dtype:
                raise ConfigError(
                    f"{owner}: all images must be of one size and type, but image {i} is "
                    f"{summarise(tensor)} and image 0 is {summarise(images[0])}; resize them with "
                    "a transform"
                )
            images[i] = tensor
    return ImageSet(images, labels)


def class_number(label: Any) -> int:
    """A label as a class 0, 1, ..

    Raises:
        ConfigError: it is no whole number >= 0.
    """
    array = isinstance(label, (Tensor, np.generic, np.ndarray))
    number = label.item() if array and math.prod(label.shape) == 1 else label
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ConfigError(f"a class must be a whole number >= 0, got {label!r}")
    return number


def read_pair(module: FederatedDataModule, train: Any, test: Any) -> tuple[ImageSet, ImageSet]:
    """Both data sets in memory; ``module`` gets their image shape and number of classes.

    Raises:
        ConfigError: one cannot be read, see :func:`read_images`, or they name other classes.
    """
    names = [list(getattr(source, "classes", ())) for source in (train, test)]
    for i, (want, got) in enumerate(zip(*names, strict=False)):
        if want != got:  # folders are numbered by what is there
            raise ConfigError(
                f"data.test must have the classes of data.train, got {got} as class {i} in place "
                f"of {want}"
            )
    sets = read_images(train, "data.train"), read_images(test, "data.test")
    channels, height, width = sets[0].images[0].shape
    module.image_shape = (channels, height, width)
    largest = [int(labels.max()) + 1 for _, labels in sets]
    module.num_classes = max(*map(len, names), *largest)
    return sets


class TorchvisionData(FederatedDataModule):
    """Any two map-style data sets of (image, label), read into memory once.

    Images may be PIL images, arrays or tensors, see :func:`read_image`; grey ones become
    (1, H, W), colour ones (3, H, W). ``image_shape`` and ``num_classes`` (the largest label, or
    the data set's ``classes``, decides) are there after ``setup``. Normalisation belongs into the
    network, see :class:`leadfl_pl.models.networks.Normalize`: triggers are written in raw pixels.

    Args:
        train, test: e.g. ``torchvision.datasets.SVHN``, by class path.
        split, batch_size, eval_batch_size: see :class:`FederatedDataModule`.

    Raises:
        ConfigError: from ``setup``, if a data set cannot be read, see :func:`read_images`, or the
            two have images of different size or type, or other classes.

    >>> from torchvision.datasets import FakeData
    >>> data = TorchvisionData(FakeData(20, (3, 8, 8), 4), FakeData(5, (3, 8, 8), 4))
    >>> data.setup()
    >>> data.image_shape, data.num_classes, data.train_set.images.dtype
    ((3, 8, 8), 4, torch.uint8)
    """

    def __init__(
        self,
        train: Dataset,  # type: ignore[type-arg]  # jsonargparse refuses settings of Dataset[Any]
        test: Dataset,  # type: ignore[type-arg]
        split: Split | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 250,
    ) -> None:
        super().__init__(split, batch_size, eval_batch_size)
        self.train, self.test = train, test

    def load(self) -> tuple[ImageSet, ImageSet]:
        return read_pair(self, self.train, self.test)
