"""The progress of a federated run in the terminal."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class RoundProgressBar(ProgressBar):
    """Rounds, clients within the round, clean and backdoor accuracy; prints lines if piped."""

    def __init__(self) -> None:
        super().__init__()
        self.progress: Progress | None = None
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero:
            self.disable()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.console = Console(stderr=True)
        if not (self.enabled and self.console.is_terminal):
            return
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )
        self.rounds = self.progress.add_task(
            "rounds", total=trainer.max_epochs, completed=trainer.current_epoch, note=""
        )
        self.clients = self.progress.add_task(
            "clients", total=trainer.num_training_batches, note=""
        )
        self.progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.progress is not None:
            self.progress.update(self.clients, completed=batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done, note = trainer.current_epoch + 1, last_evaluation(trainer)
        if self.progress is not None:
            self.progress.update(self.rounds, completed=done, note=note)
            self.progress.update(self.clients, completed=0)
            if done == trainer.max_epochs:
                self._stop()  # before Lightning and the report print below it
        elif self.enabled:
            words = [f"round {done - 1}", note, f"({done} of {trainer.max_epochs} done)"]
            self.console.print("  ".join(word for word in words if word))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.remove_task(self.clients)
            self.progress.stop()
            self.progress = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        Console(stderr=True).print(*args)


def last_evaluation(trainer: Trainer) -> str:
    """The accuracies of the last evaluation; an untargeted attack has none of a backdoor."""
    names = {"clean": "val/clean_accuracy", "backdoor": "val/backdoor_accuracy"}
    values = {w: float(trainer.callback_metrics.get(key, math.nan)) for w, key in names.items()}
    return "  ".join(f"{w} {100 * v:.1f} %" for w, v in values.items() if not math.isnan(v))
