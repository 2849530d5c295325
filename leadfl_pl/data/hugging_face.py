"""Any image data set that Hugging Face's ``datasets`` loads."""

from __future__ import annotations

from typing import Any

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data.base import FederatedDataModule, ImageSet
from leadfl_pl.data.splits import Natural, Split
from leadfl_pl.data.torchvision_sets import read_pair


class HuggingFaceData(FederatedDataModule):
    """An image data set from the Hugging Face hub or a local folder, read into memory once.

    Needs the extra: ``pip install 'leadfl_pl[huggingface]'``. Images become tensors as in
    :class:`TorchvisionData`; ``image_shape`` and ``num_classes`` are there after ``setup``.

    Args:
        path: on the hub, such as ``ylecun/mnist``, or a folder of images, Parquet or Arrow files.
        name: which of the data set's configurations, where it has several.
        train, test: names of its parts, or slices of them such as ``train[90%:]``.
        image, label: names of its columns.
        partition_by: a column, such as ``writer_id``: examples with one value in it stay with one
            client, see :class:`Natural`. In place of ``split``.
        split, batch_size, eval_batch_size: see :class:`FederatedDataModule`.

    Raises:
        ConfigError: both ``split`` and ``partition_by``; from ``prepare_data`` and ``setup``, if
            the extra or the data set is missing, or it has no such part or column.

    References:
        Lhoest et al. Datasets: A Community Library for Natural Language Processing. EMNLP 2021
        (System Demonstrations).
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        train: str = "train",
        test: str = "test",
        image: str = "image",
        label: str = "label",
        partition_by: str | None = None,
        split: Split | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 250,
    ) -> None:
        super().__init__(split, batch_size, eval_batch_size)
        if partition_by is not None and split is not None:
            raise ConfigError(
                f"data.partition_by = {partition_by} makes the split: leave data.split out, got "
                f"{type(split).__name__}"
            )
        self.path = path
        self.name = name
        self.parts = {"train": train, "test": test}
        self.columns = {"image": image, "label": label}
        self.partition_by = partition_by

    def prepare_data(self) -> None:
        for key in self.parts:
            self._part(key)

    def load(self) -> tuple[ImageSet, ImageSet]:
        train, test = (self._part(key) for key in self.parts)
        if self.partition_by is not None:
            self.split = Natural(train[self._column("partition_by", self.partition_by, train)][:])
        return read_pair(self, self._pairs(train), self._pairs(test))

    def _part(self, key: str) -> Any:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ConfigError(
                "HuggingFaceData needs datasets: pip install 'leadfl_pl[huggingface]'"
            ) from error
        try:
            return datasets.load_dataset(self.path, self.name, split=self.parts[key])
        except Exception as error:  # as many kinds as there are ways to lack data
            raise ConfigError(
                f"data.path = {self.path} must be an image data set on the hub or a folder with "
                f"one, and data.{key} = {self.parts[key]} a part of it: "
                f"{' '.join(str(error).split())}"
            ) from error

    def _column(self, key: str, name: str, part: Any) -> str:
        if name not in part.column_names:
            raise ConfigError(
                f"data.{key} must be one of the columns {', '.join(part.column_names)}, got {name}"
            )
        return name

    def _pairs(self, part: Any) -> _Pairs:
        image, label = (self._column(key, name, part) for key, name in self.columns.items())
        return _Pairs(part, image, label)


class _Pairs:
    """A part of a data set as pairs of an image and a class."""

    def __init__(self, part: Any, image: str, label: str) -> None:
        self.part = part
        self.keys = image, label
        self.classes = getattr(part.features[label], "names", ())

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        row = self.part[i]
        image, label = (row[key] for key in self.keys)
        return image, label
