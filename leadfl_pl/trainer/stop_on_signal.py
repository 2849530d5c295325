"""SIGTERM and Ctrl-C end a run after its round, not in the middle of one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from leadfl_pl.records.checkpoints import how_to_go_on

Handler = Callable[[int, FrameType | None], Any] | int | None


class StopOnSignal(Callback):
    """Notes SIGTERM, Ctrl-C and a cluster's requeue signal, and ends the run after its round.

    The ranks agree at the end of each round, so it is enough that one of them gets the signal. A
    second Ctrl-C raises :class:`KeyboardInterrupt` at once. Handlers that were there before the fit
    are called as well, except Python's own of Ctrl-C; whoever has replaced that one keeps it.
    Lightning's handler of a requeue signal, which saves and queues a SLURM job again, is called
    after the round; that of SIGTERM, which talks to other ranks in mid-round, is not. Lightning
    puts all handlers back when the fit ends.

    Attributes:
        stopped_by: the signal that ended the last fit early, None if none did.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self.received: set[int] = set()
        self._before: dict[int, Handler] = {}  # the fit
        self._requeue: dict[int, Handler] = {}
        self._quiet = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.stopped_by, self.received = None, set()
            self._before = _handlers()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._quiet = not trainer.is_global_zero
        lightnings = {n: h for n, h in _handlers().items() if h is not self._before[n]}
        self._requeue = {n: h for n, h in lightnings.items() if n != signal.SIGTERM}
        watched = {signal.SIGTERM, *self._requeue}
        if self._before[signal.SIGINT] is signal.default_int_handler:
            watched.add(signal.SIGINT)
        if trainer.received_sigterm:  # while the data was loaded
            self.received.add(signal.SIGTERM)
        try:
            for number in watched:
                signal.signal(number, self._note)
        except ValueError:  # only the main thread may
            return

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in (*self._requeue, signal.SIGTERM, signal.SIGINT):
            anyone = trainer.strategy.reduce_boolean_decision(number in self.received, all=False)
            is_last = trainer.current_epoch + 1 == trainer.max_epochs
            if anyone and self.stopped_by is None and not is_last:
                self.stopped_by = signal.Signals(number)
                trainer.should_stop = True
                if callable(handler := self._requeue.get(number)):
                    handler(number, None)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopped_by is None or not trainer.is_global_zero:
            return
        rounds = f"{trainer.current_epoch} of {trainer.max_epochs} rounds"
        message = f"{self.stopped_by.name}: stopped after {rounds}. {how_to_go_on(trainer)}"
        print(message, file=sys.stderr)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        if not self.received and not self._quiet:
            again = " (Ctrl-C again: at once)" if number == signal.SIGINT else ""
            text = f"\n{signal.Signals(number).name}: the run stops after this round{again}\n"
            os.write(2, text.encode())  # print may be what was interrupted
        self.received.add(number)
        handler = self._before[number]
        if callable(handler) and number != signal.SIGINT:
            handler(number, frame)


def stopped_by(trainer: Trainer) -> signal.Signals | None:
    """The signal that ended the Trainer's last fit early, None if none did."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c.stopped_by for c in callbacks if isinstance(c, StopOnSignal)), None)


def _handlers() -> dict[int, Handler]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}
