"""Freed memory stays with the process, so that it need not be asked for again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from leadfl_pl.trainer.allocator import keep_freed_memory

SCRIPT = """
import resource, torch
from leadfl_pl.trainer.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20_000_000)  # 80 MB, and gone again
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(min(faults() for _ in range(5)), keep_freed_memory(), min(faults() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_freed_tensors_pages_are_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    before, kept, after = done.stdout.split()
    assert kept == "True", done.stderr
    assert int(after) < min(100, int(before) / 5)  # huge pages are few


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
