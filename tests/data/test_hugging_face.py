"""Data sets as Hugging Face's library stores them, in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import ROOT
from sklearn.datasets import load_digits

from leadfl_pl import ConfigError, Digits, HuggingFaceData, LabelLimited
from leadfl_pl.cli.main import main
from leadfl_pl.records.rounds import read_run

WRITERS = [f"writer {i % 30}" for i in range(1797)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The digits as Parquet files, as the hub has data sets."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    digits = load_digits()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=[*"0123456789", "none"]),
            "writer_id": datasets.Value("string"),
        }
    )
    test = np.arange(1797) % 5 == 0
    place = tmp_path / "digits"
    for part, members in (("train", ~test), ("test", test)):
        rows = {
            "image": list((digits.images[members] * 15).astype(np.uint8)),
            "label": digits.target[members].tolist(),
            "writer_id": [WRITERS[i] for i in members.nonzero()[0]],
        }
        dataset = datasets.Dataset.from_dict(rows, features=features)
        place.mkdir(exist_ok=True)
        dataset.to_parquet(place / f"{part}-00000-of-00001.parquet")
    return place


def test_its_images_and_labels_are_those_of_the_files(folder: Path) -> None:
    module, digits = HuggingFaceData(str(folder)), Digits()
    module.prepare_data()
    module.setup()
    digits.setup()
    assert module.image_shape == (1, 8, 8)
    assert module.num_classes == 11  # as many as have names
    for ours, theirs in ((module.train_set, digits.train_set), (module.test_set, digits.test_set)):
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert (ours.images == theirs.images * 16 * 15).all()


def test_a_slice_can_be_the_test_set(folder: Path) -> None:
    module = HuggingFaceData(str(folder), train="train[:90%]", test="train[90%:]")
    module.setup()
    assert (len(module.train_set.labels), len(module.test_set.labels)) == (1293, 144)


def test_partition_by_a_column_keeps_its_groups_whole(folder: Path) -> None:
    module = HuggingFaceData(str(folder), partition_by="writer_id")
    module.setup()
    train = [writer for i, writer in enumerate(WRITERS) if i % 5]
    parts = module.partition(10, seed=0)
    held = [{train[i] for i in part} for part in parts]
    assert sum(map(len, held)) == len(set(train)) == len(set.union(*held))


def test_it_trains_from_the_command_line(folder: Path) -> None:
    flags = [
        f"--data.path={folder}",
        "--data.partition_by=writer_id",
        "--trainer.federation.num_clients=24",
        "--trainer.federation.num_malicious=6",
        "--trainer.federation.clients_per_round=6",
        "--trainer.max_epochs=2",
        "--trainer.federation.local_epochs=1",
        "--model.model.num_classes=11",
    ]
    assert (
        main(["fit", f"--config={ROOT}/configs/quickstart.yaml", "--data=HuggingFaceData", *flags])
        == 0
    )
    run = read_run(Path("runs/quickstart"))
    assert len(run.rows) == 2
    assert run.provenance["split"]["settings"]["class"].endswith("Natural")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "img"}, "data.image must be one of the columns image, label, .*, got img"),
        ({"label": "fine"}, "data.label must be one of the columns image, .*, got fine"),
        ({"partition_by": "phone"}, "data.partition_by must be one of the columns .* got phone"),
        ({"train": "validation"}, "data.train = validation a part of it: .*validation"),
        ({"name": "german"}, "must be an image data set .*german"),
        ({"label": "writer_id"}, "example 0 .* a class must be a whole number .*'writer 1'"),
        ({"image": "label"}, "example 0 must be a pair of an image and a class: .* got int"),
    ],
)  # fmt: skip
def test_what_the_data_set_has_not_is_one_sentence(
    folder: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        HuggingFaceData(str(folder), **settings).setup()


def test_a_data_set_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"data.path = {tmp_path}/none must be an image data set"):
        HuggingFaceData(f"{tmp_path}/none").prepare_data()


def test_what_the_library_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(ConfigError, match=r"data\.path = old must be .* scripts are no longer"):
        HuggingFaceData("old").prepare_data()


def test_two_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"partition_by = user makes .* got LabelLimited"):
        HuggingFaceData("mnist", partition_by="user", split=LabelLimited(2))


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'leadfl_pl\[huggingface\]'"):
        HuggingFaceData("mnist").prepare_data()
