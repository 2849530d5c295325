"""FashionMNIST's files: found in the right place, checked, refused when damaged."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
import torch
import torchvision

from leadfl_pl import ConfigError, FashionMNIST
from leadfl_pl.data import fashion_mnist

PACKAGE = Path("/usr/share/datasets/fashion-mnist")
needs_package = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)
LABELS = "t10k-labels-idx1-ubyte"


def loaded(**settings: str) -> FashionMNIST:
    module = FashionMNIST(**settings)
    module.prepare_data()
    module.setup()
    return module


@needs_package
def test_the_debian_package_is_found_and_is_the_real_thing() -> None:
    module = loaded()
    assert module.train_set.images.shape == (60000, 1, 28, 28)
    assert torch.bincount(module.train_set.labels).tolist() == [6000] * 10
    assert torch.bincount(module.test_set.labels).tolist() == [1000] * 10
    pixels = module.train_set.images.double() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3530, abs=5e-5)


@needs_package
def test_torchvisions_folder_comes_first_and_is_read_as_torchvision_reads_it(
    tmp_path: Path,
) -> None:
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in PACKAGE.glob("*.gz"):  # unpacked, as torchvision leaves them
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    ours = loaded(data_dir="data")
    theirs = torchvision.datasets.FashionMNIST("data", train=False)
    assert torch.equal(ours.test_set.images.squeeze(1), theirs.data)
    assert torch.equal(ours.test_set.labels, theirs.targets)
    (raw / LABELS).write_bytes(b"damaged")  # and it is not passed over for the package
    with pytest.raises(ConfigError, match="magic number is 64616d61"):
        loaded(data_dir="data")


@needs_package
def test_an_iid_split_gives_each_of_100_clients_600_images() -> None:
    parts = loaded().partition(100, seed=0)
    assert {len(p) for p in parts} == {600}
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(60000))


def broken(folder: Path, content: bytes, name: str = LABELS) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


HEADER = bytes([0, 0, 8, 1]) + (10000).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("content", "name", "problem"),
    [
        (HEADER + bytes(9999), LABELS, "holds 10007 bytes, not 10008"),
        (bytes([0, 0, 8, 3]) + bytes(10004), LABELS, "magic number is 00000803, not 00000801"),
        (HEADER + bytes(10000), LABELS, "checksum is wrong"),
        (b"not gzip", f"{LABELS}.gz", "cannot be unpacked"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(
    tmp_path: Path, content: bytes, name: str, problem: str
) -> None:
    broken(tmp_path / "raw", content, name)
    with pytest.raises(ConfigError, match=problem) as caught:
        fashion_mnist.read_idx(tmp_path / "raw", LABELS)
    assert name in str(caught.value)
    assert "dataset-fashion-mnist" in str(caught.value)


def test_no_data_and_no_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("nowhere"))

    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", no_network)
    with pytest.raises(ConfigError, match=r"data.data_dir = data has no FashionMNIST .*no network"):
        loaded()


@needs_package
def test_a_partly_missing_package_is_an_error(tmp_path: Path, monkeypatch) -> None:
    shutil.copy(PACKAGE / f"{LABELS}.gz", tmp_path)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte\.gz: it is missing"):
        loaded()
