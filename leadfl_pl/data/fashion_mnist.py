"""FashionMNIST from torchvision's folder, from Debian's package, or downloaded."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data.base import FederatedDataModule, ImageSet
from leadfl_pl.data.downloaded import one_at_a_time
from leadfl_pl.data.splits import Split

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_HINT = "install the Debian package dataset-fashion-mnist"

# name: dimensions, SHA-256 of the uncompressed file
FILES: dict[str, tuple[tuple[int, ...], str]] = {
    "train-images-idx3-ubyte": (
        (60000, 28, 28),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte": (
        (60000,),
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte": (
        (10000, 28, 28),
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte": (
        (10000,),
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


def read_idx(folder: Path, name: str) -> Tensor:
    """The checked contents of ``name`` or ``name.gz`` in ``folder``, uint8.

    Raises:
        ConfigError: the file is missing, cannot be unpacked, or has a wrong magic number, size or
            checksum.
    """
    dimensions, sha256 = FILES[name]
    path = folder / name
    if not path.is_file():
        path = folder / f"{name}.gz"
    if not path.is_file():
        raise _bad(path, "it is missing")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _bad(path, f"it cannot be read ({error.strerror})") from error
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise _bad(path, f"it cannot be unpacked ({error})") from error
    magic = bytes([0, 0, 8, len(dimensions)])  # 8: unsigned bytes
    header = magic + b"".join(n.to_bytes(4, "big") for n in dimensions)
    if raw[: len(magic)] != magic:
        raise _bad(path, f"its magic number is {raw[:4].hex()}, not {magic.hex()}")
    if (size := len(raw)) != (expected := len(header) + math.prod(dimensions)):
        raise _bad(path, f"it holds {size} bytes, not {expected}")
    if raw[: len(header)] != header or hashlib.sha256(raw).hexdigest() != sha256:
        raise _bad(path, "its checksum is wrong")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=len(header)).view(dimensions)


def _bad(path: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"data.data_dir: cannot use {path}: {problem}; delete the folder {path.parent} to have "
        f"all four files downloaded anew, or {DEBIAN_HINT} and leave data.data_dir without them"
    )


class FashionMNIST(FederatedDataModule):
    """60,000 training and 10,000 test images of 28 x 28 pixels, kept as bytes.

    Looked for, in this order: in ``data_dir`` as torchvision lays it out
    (``FashionMNIST/raw``), in the folder of Debian's package, by download into ``data_dir``.
    What is found is checked (magic number, size, checksum); a damaged file is an error, not a
    reason to look on.

    Args:
        data_dir: as torchvision's ``root``.
        split, batch_size, eval_batch_size: see :class:`FederatedDataModule`.

    References:
        Xiao, Rasul, Vollgraf. Fashion-MNIST. arXiv:1708.07747, 2017.
    """

    image_shape = (1, 28, 28)
    num_classes = 10

    def __init__(
        self,
        data_dir: str = "data",
        split: Split | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 250,
    ) -> None:
        super().__init__(split, batch_size, eval_batch_size)
        self.data_dir = Path(data_dir).expanduser()

    def prepare_data(self) -> None:
        if self._folder() == DEBIAN_FOLDER:
            return
        try:
            with one_at_a_time(self.data_dir):
                if self._folder() is None:
                    torchvision.datasets.FashionMNIST(str(self.data_dir), download=True)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"data.data_dir = {self.data_dir} has no FashionMNIST and it cannot be "
                f"downloaded ({error}); {DEBIAN_HINT}, or put the four files into "
                f"{self.raw_folder}"
            ) from error

    @property
    def raw_folder(self) -> Path:
        """Where torchvision keeps the files."""
        return self.data_dir / "FashionMNIST" / "raw"

    def _folder(self) -> Path | None:
        for folder in (self.raw_folder, DEBIAN_FOLDER):
            if any((folder / f"{name}{end}").is_file() for name in FILES for end in ("", ".gz")):
                return folder
        return None

    def load(self) -> tuple[ImageSet, ImageSet]:
        folder = self._folder() or self.raw_folder
        parts = [read_idx(folder, name) for name in FILES]
        return (
            ImageSet(parts[0].unsqueeze(1), parts[1].long()),
            ImageSet(parts[2].unsqueeze(1), parts[3].long()),
        )
