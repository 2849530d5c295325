"""Ctrl-C and SIGTERM, as the process of an experiment sees them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles Ctrl-C and SIGTERM with ``handler``."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def wakeup() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come, whoever handles it: a run does, and may end by itself."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    seen: set[int] = set()

    def signalled() -> bool:
        with suppress(BlockingIOError):  # none since
            seen.update(os.read(read, 1 << 16))
        return not seen.isdisjoint(SIGNALS)

    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield signalled
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)
