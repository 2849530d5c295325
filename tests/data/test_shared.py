"""Tensors written to a file and mapped again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from leadfl_pl.data.shared import read, share, write

TENSORS = [
    torch.arange(7, dtype=torch.uint8).view(7, 1),  # 7 bytes: the next one must be aligned
    torch.arange(5),
    torch.rand(3, 2, dtype=torch.float64),
    torch.rand(4, 6).T,
]


def test_what_is_mapped_is_what_was_written(tmp_path: Path) -> None:
    write(tmp_path / "data", TENSORS)
    mapped = read(tmp_path / "data", TENSORS)
    assert [t.dtype for t in mapped] == [t.dtype for t in TENSORS]
    assert all(torch.equal(a, b) for a, b in zip(mapped, TENSORS, strict=True))


def test_two_readers_see_the_same_memory_which_outlives_the_file(tmp_path: Path) -> None:
    write(tmp_path / "data", TENSORS)
    one, other = (read(tmp_path / "data", TENSORS) for _ in range(2))
    (tmp_path / "data").unlink()
    one[1][2] = 99
    assert other[1].tolist() == [0, 1, 99, 3, 4]


def test_a_single_process_keeps_its_tensors_and_writes_nothing() -> None:
    assert all(a is b for a, b in zip(share(TENSORS, SimpleNamespace(
        world_size=1, strategy=None)), TENSORS, strict=True))  # fmt: skip
