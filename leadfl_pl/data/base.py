"""The data module that both a federation and a plain Trainer can use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from leadfl_pl.core.describe import describe
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data.shared import share
from leadfl_pl.data.splits import IID, Split


class ImageSet(NamedTuple):
    """A data set in memory."""

    images: Tensor  # (N, C, H, W), uint8 in 0 .. 255 or float
    labels: Tensor  # (N,) int64

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


class FederatedDataModule(LightningDataModule):
    """A training set that is split over clients, and a test set to evaluate the global model on.

    A data set is a subclass that defines :meth:`load`, ``image_shape`` and ``num_classes``. In a
    plain Trainer, ``train_dataloader`` gives the whole training set.

    Args:
        split: how the training set is split over the clients; IID if not given.
        batch_size: of the local steps, B.
        eval_batch_size: of the evaluation.

    Raises:
        ConfigError: a batch size below 1.
    """

    image_shape: tuple[int, int, int]  # (C, H, W)
    num_classes: int

    def __init__(
        self, split: Split | None = None, batch_size: int = 32, eval_batch_size: int = 250
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ConfigError(f"data.{name} must be >= 1, got {name} = {value}")
        self.split = split or IID()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self._sets: tuple[ImageSet, ImageSet] | None = None

    def load(self) -> tuple[ImageSet, ImageSet]:
        """The training and the test set."""
        raise NotImplementedError(f"{type(self).__name__} must define load()")

    def setup(self, stage: str | None = None) -> None:
        if self._sets is None:
            self._sets = self.load()

    @property
    def train_set(self) -> ImageSet:
        """The training set, after :meth:`setup`."""
        assert self._sets is not None, "call setup() first"
        return self._sets[0]

    @property
    def test_set(self) -> ImageSet:
        """The test set, after :meth:`setup`."""
        assert self._sets is not None, "call setup() first"
        return self._sets[1]

    def to(self, device: torch.device | str) -> None:
        """Moves both sets to ``device``, once; the CPU processes of a node share one copy."""
        if torch.device(device).type == "cpu" and self.trainer is not None:
            tensors = share([*self.train_set, *self.test_set], self.trainer)
            self._sets = (ImageSet(*tensors[:2]), ImageSet(*tensors[2:]))
        self._sets = (self.train_set.to(device), self.test_set.to(device))

    def partition(self, num_clients: int, seed: int) -> list[Tensor]:
        """Indices into the training set, one tensor for each client."""
        return self.split(self.train_set.labels.cpu(), num_clients, seed)

    def state_dict(self) -> dict[str, Any]:
        return {"split": describe(self.split), "batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to go on with a federation whose clients had other data.

        Raises:
            ConfigError: the split or the batch size is not the checkpoint's.
        """
        trainer = self.trainer
        if trainer is None or not hasattr(trainer, "federation") or trainer.state.fn != "fit":
            return
        for key, value in self.state_dict().items():
            if (saved := state_dict[key]) != value:
                raise ConfigError(
                    f"data.{key} must be {saved}, as in the checkpoint, to go on with its run, "
                    f"got {key} = {value}"
                )

    def train_dataloader(self) -> TensorBatches:
        return TensorBatches(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> TensorBatches:
        """The test set in batches, dealt out over the ranks of a Trainer.

        In a federation one rank may have a batch more than another, so what ranks do together
        (``sync_dist``, ``all_gather``) belongs to the end of the epoch.
        """
        limit = 1.0 if self.trainer is None else self.trainer.limit_val_batches
        return self._evaluation_batches(limit)

    def test_dataloader(self) -> TensorBatches:
        limit = 1.0 if self.trainer is None else self.trainer.limit_test_batches
        return self._evaluation_batches(limit)

    def _evaluation_batches(self, limit: float | int) -> TensorBatches:
        """The batches of this rank, or all where every rank must have them.

        That is where the Trainer counts batches, and where there are fewer than ranks: a rank
        without any would not be there when metrics meet. In a federation, where buffers move that
        :class:`~leadfl_pl.trainer.batch_statistics.BatchStatistics` does not bring together. In any other
        Trainer, where any move, and where ranks would have unequally many batches, as
        DistributedDataParallel waits for each.
        """
        batches = TensorBatches(self.test_set, self.eval_batch_size)
        trainer = self.trainer
        if trainer is None or isinstance(limit, int) or limit != 1.0:
            return batches
        rank, world_size = trainer.global_rank, trainer.world_size
        whole, rest = divmod(len(batches), world_size)
        module = trainer.lightning_module
        moving = getattr(module, "evaluation_mode", "eval") == "train"
        keeps = whole == 0 or moving
        if keeps:
            return batches
        return TensorBatches(self.test_set, self.eval_batch_size, rank=rank, world_size=world_size)
