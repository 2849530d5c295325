"""SIGTERM and Ctrl-C end a run after its round, not in the middle of one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | None


class StopSignals:
    """Notes signals while it is installed; the run looks at the end of each round.

    A second Ctrl-C raises :class:`KeyboardInterrupt` at once. Handlers that were there before are
    called as well, except Python's own of Ctrl-C; whoever has replaced that one keeps it.
    """

    def __init__(self) -> None:
        self.watched: list[signal.Signals] = []  # by weight, the last one wins
        self.requeue: signal.Signals | None = None
        self.weight = 0  # 1 + the place in it of the weightiest that has come, 0 for none
        self.quiet = True
        self.previous: dict[signal.Signals, Handler] = {}

    def install(self, requeue: signal.Signals | None, quiet: bool) -> None:
        """Begins to note.

        Args:
            requeue: the signal after which a cluster's job is to be queued again.
            quiet: whether to print nothing, as all processes but one should.
        """
        self.restore()
        self.weight, self.quiet, self.requeue = 0, quiet, requeue
        self.watched = [signal.SIGINT, signal.SIGTERM, *([requeue] if requeue else [])]
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers
        for watched in self.watched:
            present = signal.getsignal(watched)
            if watched != signal.SIGINT or present is signal.default_int_handler:
                self.previous[watched] = present
                signal.signal(watched, self._note)

    def restore(self) -> None:
        """Puts back the handlers that were there before."""
        for watched, handler in self.previous.items():
            signal.signal(watched, handler)
        self.previous = {}

    def strongest(self, weight: int) -> signal.Signals | None:
        """The signal of that weight."""
        return self.watched[weight - 1] if weight else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        weight = 1 + self.watched.index(signal.Signals(number))
        if number == signal.SIGINT and self.weight:
            raise KeyboardInterrupt
        if not self.weight and not self.quiet:
            again = " (Ctrl-C again: at once)" if number == signal.SIGINT else ""
            text = f"\n{signal.Signals(number).name}: the run stops after this round{again}\n"
            os.write(2, text.encode())  # print may be what was interrupted
        self.weight = max(self.weight, weight)
        handler = self.previous[signal.Signals(number)]
        if callable(handler) and number != signal.SIGINT:
            handler(number, frame)
