"""Data sets that are downloaded."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from leadfl_pl import CIFAR10, ConfigError, FashionMNIST
from leadfl_pl.data.downloaded import one_at_a_time


def test_a_second_process_waits_until_the_first_has_downloaded(tmp_path: Path) -> None:
    said = []

    def download(name: str) -> None:
        with one_at_a_time(tmp_path / "data"):
            said.append(f"{name} begins")
            time.sleep(0.2)
            said.append(f"{name} ends")

    threads = [threading.Thread(target=download, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text[0] for text in said] in (["a", "a", "b", "b"], ["b", "b", "a", "a"])


def test_a_folder_that_cannot_have_a_lock_is_read_without() -> None:
    Path("data").write_text("no folder")
    with one_at_a_time(Path("data")):
        pass
    with pytest.raises(ConfigError, match=r"data\.data_dir = data has no undamaged CIFAR10"):
        CIFAR10().prepare_data()


@pytest.mark.parametrize("kind", [CIFAR10, FashionMNIST])
def test_a_tilde_is_the_home_folder(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert kind("~/data").data_dir == Path("/home/me/data")
