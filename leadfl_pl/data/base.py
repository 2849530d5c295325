"""The data module that both a federation and a plain Trainer can use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from leadfl_pl.core.errors import (
    FLOATS,
    ConfigError,
    errors_of,
    require_number,
    require_numbers,
    require_tensor,
    summarise,
)
from leadfl_pl.data.splits import IID, Split, check_split


class ImageSet(NamedTuple):
    """A data set in memory."""

    images: Tensor  #: (N, C, H, W), uint8 in 0 .. 255 or float
    labels: Tensor  #: (N,) int64

    def take(self, index: Tensor, device: torch.device | str = "cpu") -> ImageSet:
        """The examples at ``index``, as floats on ``device``."""
        index = index.to(self.labels.device)
        return ImageSet(as_float(self.images[index].to(device)), self.labels[index].to(device))

    def to(self, device: torch.device | str) -> ImageSet:
        """The same examples on ``device``."""
        return ImageSet(self.images.to(device), self.labels.to(device))


def as_float(images: Tensor) -> Tensor:
    """uint8 images in [0, 255] as float32 in [0, 1]; floats are left as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


class TensorBatches:
    """Batches of an :class:`ImageSet`, cut from the tensors without a worker or a collate call.

    Args:
        data: the examples.
        batch_size: B; the last batch may be smaller.
        shuffle: a new order, from torch's global generator, in each iteration.
        rank, world_size: give every ``world_size``-th batch, from the one at ``rank`` on.

    Attributes:
        places: of the batches that are given, among all of them.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.places = range(-(-len(data.labels) // batch_size))[rank::world_size]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.data
        order = (torch.randperm if self.shuffle else torch.arange)(len(labels))
        parts = order.split(self.batch_size)
        for place in self.places:
            index = parts[place].to(labels.device)
            yield as_float(images[index]), labels[index]


def epoch_batches(
    data: ImageSet, batch_size: int, rng: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """One local epoch: the examples in an order drawn from ``rng`` (CPU), cut into batches."""
    order = torch.randperm(len(data.labels), generator=rng).to(data.labels.device)
    images, labels = data.images[order], data.labels[order]
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


class FederatedDataModule(LightningDataModule, ABC):
    """A training set that is split over clients, and a test set to evaluate the global model on.

    A data set is a subclass that defines :meth:`load`, ``image_shape`` and ``num_classes``. In a
    plain Trainer, ``train_dataloader`` gives the whole training set.

    Args:
        split: how the training set is split over the clients; IID if not given.
        batch_size: of the local steps, B.
        eval_batch_size: of the evaluation.

    Raises:
        ConfigError: a batch size below 1; from ``setup``, see :func:`check_sets`.
    """

    image_shape: tuple[int, int, int]  #: (C, H, W)
    num_classes: int

    def __init__(
        self, split: Split | None = None, batch_size: int = 32, eval_batch_size: int = 250
    ) -> None:
        super().__init__()
        for key, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            require_number("data", key, value, least=1, whole=True)
        self.split = split or IID()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self._sets: tuple[ImageSet, ImageSet] | None = None

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet]:
        """The training and the test set."""

    def setup(self, stage: str | None = None) -> None:
        if self._sets is None:
            with errors_of(f"{type(self).__name__}.load"):
                sets = self.load()
            check_sets(self, sets)
            self._sets = sets

    @property
    def train_set(self) -> ImageSet:
        """The training set, after ``setup()``."""
        assert self._sets is not None, "call setup() first"
        return self._sets[0]

    @property
    def test_set(self) -> ImageSet:
        """The test set, after ``setup()``."""
        assert self._sets is not None, "call setup() first"
        return self._sets[1]

    def to(self, device: torch.device | str) -> None:
        """Moves both sets to ``device``."""
        self._sets = (self.train_set.to(device), self.test_set.to(device))

    def partition(self, num_clients: int, seed: int) -> list[Tensor]:
        """Indices into the training set, one tensor for each client.

        Raises:
            ConfigError: the split does not assign every example to exactly one client.
        """
        labels = self.train_set.labels.cpu()
        with errors_of(type(self.split).__name__):
            parts = self.split(labels, num_clients, seed)
        return check_split(self.split, parts, num_clients, len(labels))

    def train_dataloader(self) -> TensorBatches:
        return TensorBatches(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> TensorBatches:
        """The test set in batches, split over the ranks of a Trainer where that changes nothing."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_val_batches
        return self._evaluation_batches(limit)

    def test_dataloader(self) -> TensorBatches:
        """As :meth:`val_dataloader`."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_test_batches
        return self._evaluation_batches(limit)

    def _evaluation_batches(self, limit: float | int) -> TensorBatches:
        """Every n-th batch of the test set for each of n ranks, or all of them for every rank.

        All of them where the Trainer counts batches, where the ranks would have unequally many
        (they wait for each other), and where evaluation moves buffers, which every rank must move
        alike.
        """
        batches = TensorBatches(self.test_set, self.eval_batch_size)
        trainer = self.trainer
        if trainer is None or isinstance(limit, int) or limit != 1.0:
            return batches
        moves_buffers = getattr(trainer.lightning_module, "evaluation_mode", "eval") == "train"
        if moves_buffers or len(batches) % trainer.world_size:
            return batches
        rank, world_size = trainer.global_rank, trainer.world_size
        return TensorBatches(self.test_set, self.eval_batch_size, rank=rank, world_size=world_size)


def check_sets(module: FederatedDataModule, sets: object) -> None:
    """Raises :class:`ConfigError` unless ``sets`` can be what the module's ``load`` must return.

    That is two :class:`ImageSet`, neither empty, of ``image_shape``, one dtype, finite images and
    labels in 0 .. ``num_classes`` - 1.
    """
    name = type(module).__name__
    pair = list(sets) if isinstance(sets, tuple) else []
    if len(pair) != 2 or not all(isinstance(data, ImageSet) for data in pair):
        raise ConfigError(f"{name}.load must return two ImageSet, got {summarise(sets)}")
    for key in ("image_shape", "num_classes"):
        if not hasattr(module, key):
            raise ConfigError(f"{name} must define {key}, got none")
    require_numbers(name, "image_shape", module.image_shape, least=1, length=3)
    require_number(name, "num_classes", module.num_classes, least=1, whole=True)
    for which, (images, labels) in zip(("training", "test"), pair, strict=True):
        demand = f"{name}.load must return {which}"
        shape = ("N", *module.image_shape)
        require_tensor(f"{demand} images as", images, shape, torch.uint8, *FLOATS)
        require_tensor(f"{demand} labels as", labels, (len(images),), torch.int64)
        if not len(images):
            raise ConfigError(f"{demand} images, got an empty set")
        is_float = images.is_floating_point()
        if is_float and bool((wrong := ~images.flatten(1).isfinite().all(dim=1)).any()):
            first = int(wrong.nonzero()[0])
            raise ConfigError(f"{demand} images of finite numbers, got NaN or Inf in image {first}")
        if bool((wrong := (labels < 0) | (labels >= module.num_classes)).any()):
            first = int(wrong.nonzero()[0])
            raise ConfigError(
                f"{demand} labels in 0 .. {module.num_classes - 1}, got {labels[first]} for image "
                f"{first}"
            )
    train, test = (data.images for data in pair)
    if train.dtype != test.dtype:
        raise ConfigError(
            f"{name}.load must return training and test images of one dtype, got "
            f"{summarise(train)} and {summarise(test)}"
        )
