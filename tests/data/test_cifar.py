"""CIFAR's own files, made small, through torchvision's own loader and its integrity check."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from leadfl_pl import CIFAR10, CIFAR100, ConfigError

PER_FILE = 4
LISTS = {  # class, label key, folder
    "CIFAR10": (CIFAR10, "labels", "cifar-10-batches-py"),
    "CIFAR100": (CIFAR100, "fine_labels", "cifar-100-python"),
}


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def write_cifar(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes ``name`` with four images a file, whose checksums torchvision then expects."""
    theirs = getattr(torchvision.datasets, name)
    _, key, folder = LISTS[name]
    (root / folder).mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)

    def written(file: str, content: object) -> list[str]:
        (root / folder / file).write_bytes(raw := pickle.dumps(content))
        return [file, md5(raw)]

    for which in ("train_list", "test_list"):
        files = []
        for number, (file, _) in enumerate(getattr(theirs, which)):
            data = torch.randint(0, 256, (PER_FILE, 3072), generator=rng, dtype=torch.uint8)
            labels = [(PER_FILE * number + i) % 10 for i in range(PER_FILE)]
            files.append(written(file, {"data": data.numpy(), key: labels}))
        monkeypatch.setattr(theirs, which, files)
    meta = theirs.meta
    file, checksum = written(meta["filename"], {meta["key"]: ["a"] * 10})
    monkeypatch.setattr(theirs, "meta", meta | {"filename": file, "md5": checksum})
    return root / folder


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", LISTS)
def test_images_are_as_torchvision_reads_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(name, Path("data"), monkeypatch)
    ours = LISTS[name][0]()
    ours.prepare_data()
    ours.setup()
    theirs = getattr(torchvision.datasets, name)("data", train=True)
    assert ours.train_set.images.shape == (len(theirs), 3, 32, 32)
    assert ours.train_set.images.dtype == torch.uint8
    assert ours.test_set.images.shape == (PER_FILE, 3, 32, 32)
    for i, (image, label) in enumerate(theirs):
        expected = torchvision.transforms.functional.pil_to_tensor(image)
        assert torch.equal(ours.train_set.images[i], expected)
        assert ours.train_set.labels[i] == label
    assert ours.image_shape == ours.train_set.images.shape[1:]


@pytest.mark.usefixtures("_no_network")
def test_the_archive_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar("CIFAR10", Path("elsewhere"), monkeypatch)
    Path("data").mkdir()
    with tarfile.open("data/cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    checksum = md5(Path("data/cifar-10-python.tar.gz").read_bytes())
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", checksum)
    module = CIFAR10()
    module.prepare_data()
    module.setup()
    assert len(module.train_set.labels) == 5 * PER_FILE


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", LISTS)
def test_no_data_and_no_network_is_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match=f"data.data_dir = data has no undamaged {name}") as error:
        LISTS[name][0]().prepare_data()
    assert "no network" in str(error.value)
    assert f"cifar-{name[5:]}-python.tar.gz into data" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("name", LISTS)
def test_a_damaged_file_is_the_same_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar(name, Path("data"), monkeypatch)
    train_file = folder / getattr(torchvision.datasets, name).train_list[0][0]
    train_file.write_bytes(train_file.read_bytes()[:-1] + b"!")
    with pytest.raises(ConfigError, match=f"data.data_dir = data has no undamaged {name}"):
        LISTS[name][0]().prepare_data()
    with pytest.raises(ConfigError, match="not found or corrupted"):
        LISTS[name][0]().setup()
