"""What the data sets that torchvision can download have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from filelock import FileLock

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data.base import FederatedDataModule, ImageSet
from leadfl_pl.data.splits import Split


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Processes that would download into ``folder`` wait for each other."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except (OSError, NotImplementedError):  # read-only, so without downloads, or without locks
        yield
        return
    with held:
        yield


class DownloadedData(FederatedDataModule, ABC):
    """A data set that torchvision reads from ``data_dir``, or downloads into it, kept as bytes.

    torchvision's loaders and integrity checks run. A data set is a subclass that defines
    :meth:`dataset`, ``files``, ``image_shape`` and ``num_classes``.

    Args:
        data_dir: as torchvision's ``root``.
        split, batch_size, eval_batch_size: see :class:`FederatedDataModule`.

    Raises:
        ConfigError: from ``prepare_data`` and ``setup``, if there is no undamaged data set and it
            cannot be downloaded.
    """

    files: ClassVar[str]  # what a user without a network must put where, {} for ``data_dir``

    def __init__(
        self,
        data_dir: str = "data",
        split: Split | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 250,
    ) -> None:
        super().__init__(split, batch_size, eval_batch_size)
        self.data_dir = Path(data_dir).expanduser()

    @abstractmethod
    def dataset(self, train: bool, download: bool) -> Any:
        """torchvision's data set, with ``data`` and ``targets``."""

    def prepare_data(self) -> None:
        with one_at_a_time(self.data_dir):
            self._read(train=False, download=True)

    def load(self) -> tuple[ImageSet, ImageSet]:
        return self._read(train=True, download=False), self._read(train=False, download=False)

    def _read(self, train: bool, download: bool) -> ImageSet:
        try:
            dataset = self.dataset(train, download)
        except (AssertionError, OSError, RuntimeError, ValueError) as error:
            raise self._unusable(error) from error
        images, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
        if len(images) != len(labels):
            raise self._unusable(f"{len(images)} images with {len(labels)} labels")
        # (N, H, W, C) of colour, (N, H, W) of grey images
        images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images.unsqueeze(1)
        return ImageSet(images.contiguous(), labels.long())

    def _unusable(self, problem: object) -> ConfigError:
        return ConfigError(
            f"data.data_dir = {self.data_dir} has no undamaged {type(self).__name__} "
            f"({' '.join(str(problem).split())}); delete what is damaged and go online to have it "
            f"downloaded, or put {self.files.format(self.data_dir)}"
        )
