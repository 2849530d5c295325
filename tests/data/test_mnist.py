"""MNIST's own files, made small, through torchvision's own loader."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from leadfl_pl import MNIST, ConfigError

RAW = Path("data/MNIST/raw")
COUNTS = {"train": 6, "t10k": 3}


def idx(*dimensions: int) -> bytes:
    header = bytes([0, 0, 8, len(dimensions)]) + b"".join(n.to_bytes(4, "big") for n in dimensions)
    size = int(torch.tensor(dimensions).prod())
    values = torch.arange(size) % (10 if len(dimensions) == 1 else 251)
    return header + bytes(values.tolist())


def write_mnist() -> None:
    RAW.mkdir(parents=True)
    for part, count in COUNTS.items():
        (RAW / f"{part}-images-idx3-ubyte").write_bytes(idx(count, 28, 28))
        (RAW / f"{part}-labels-idx1-ubyte").write_bytes(idx(count))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def loaded() -> MNIST:
    module = MNIST()
    module.prepare_data()
    module.setup()
    return module


def test_images_are_as_torchvision_reads_them() -> None:
    write_mnist()
    module = loaded()
    theirs = torchvision.datasets.MNIST("data", train=True)
    assert module.train_set.images.shape == (6, 1, 28, 28)
    assert torch.equal(module.train_set.images.squeeze(1), theirs.data)
    assert module.train_set.labels.tolist() == theirs.targets.tolist() == list(range(6))
    assert module.test_set.images.shape == (3, 1, 28, 28)


def test_downloads_are_unpacked_if_their_checksums_are_right(monkeypatch) -> None:
    write_mnist()
    resources = []
    for path in list(RAW.iterdir()):
        packed = gzip.compress(path.read_bytes())
        path.unlink()
        (RAW / f"{path.name}.gz").write_bytes(packed)
        checksum = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        resources.append((f"{path.name}.gz", checksum))
    with pytest.raises(ConfigError, match="no network"):  # not the real files' checksums
        loaded()
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    assert len(loaded().train_set.labels) == 6


def test_no_data_and_no_network_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"data.data_dir = data has no undamaged MNIST") as error:
        MNIST().prepare_data()
    assert "no network" in str(error.value)
    assert "four .gz files, unpacked, into data/MNIST/raw" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda: (RAW / "train-images-idx3-ubyte").write_bytes(idx(6, 28, 28)[:-1]),
        lambda: (RAW / "train-images-idx3-ubyte").write_bytes(b"damaged"),
        lambda: (RAW / "train-images-idx3-ubyte").write_bytes(b""),
        lambda: (RAW / "train-labels-idx1-ubyte").write_bytes(idx(5)),
    ],
    ids=["truncated", "no idx file", "empty", "labels for other images"],
)
def test_a_damaged_file_is_the_same_sentence(damage) -> None:
    write_mnist()
    damage()
    with pytest.raises(ConfigError, match=r"data.data_dir = data has no undamaged MNIST"):
        loaded()
