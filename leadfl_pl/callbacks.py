"""Backdoor evaluation, the progress bar, and the report at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from leadfl_pl.attacks import Attack
from leadfl_pl.metrics import AverageOverRounds, BackdoorAccuracy
from leadfl_pl.plots import plot_accuracies, plot_label_shares
from leadfl_pl.provenance import describe as describe_setting
from leadfl_pl.provenance import provenance
from leadfl_pl.records import FACTS, FIGURE, ROUNDS, SPLIT, cells, summary, write_facts, write_rows
from leadfl_pl.splits import label_counts
from leadfl_pl.splits import summary as split_summary


class BackdoorEvaluation(Callback):
    """Measures a backdoor in validation and test, in any Trainer whose batches are (x, y).

    Logs ``val/backdoor_accuracy`` (triggered images whose true class is not the target),
    ``val/backdoor_accuracy_all`` (target-class images counted too, as the released LeadFL code
    does) and, over the epochs of a fit, ``val/backdoor_accuracy_avg``.

    Args:
        attack: the attack whose trigger is measured.
    """

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.accuracy = BackdoorAccuracy()
        self.accuracy_all = BackdoorAccuracy()
        self.average = AverageOverRounds()
        self.last_averaged = -1

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        x, y = batch
        if (triggered := self.attack.trigger(x, y)) is None:
            return
        images, target, mask = triggered
        with trainer.precision_plugin.forward_context():
            predictions = pl_module(images).argmax(dim=1)
        for metric in (self.accuracy, self.accuracy_all):
            metric.to(predictions.device)
        self.accuracy.update(predictions, target, mask)
        self.accuracy_all.update(predictions, target)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage = "test" if trainer.testing else "val"
        if self.accuracy.update_count == 0:
            return
        value = self.accuracy.compute()
        pl_module.log(f"{stage}/backdoor_accuracy", value)
        pl_module.log(f"{stage}/backdoor_accuracy_all", self.accuracy_all.compute())
        self.accuracy.reset()
        self.accuracy_all.reset()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if trainer.current_epoch > self.last_averaged:  # else: evaluated again on resume
                self.average.update(value.cpu())
                self.last_averaged = trainer.current_epoch
            pl_module.log(f"{stage}/backdoor_accuracy_avg", self.average.compute().float())

    def on_test_batch_end(self, *args: Any) -> None:
        self.on_validation_batch_end(*args)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict(), "last_averaged": self.last_averaged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average.load_state_dict(state_dict["average"])
        self.last_averaged = state_dict["last_averaged"]


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
        rounds = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        self.rounds = self.progress.add_task(
            "rounds", total=rounds, completed=trainer.current_epoch, note=""
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
        note = describe(trainer)
        if self.progress is not None:
            self.progress.update(self.rounds, completed=trainer.current_epoch + 1, note=note)
            self.progress.update(self.clients, completed=0)
            if trainer.current_epoch + 1 == trainer.max_epochs:
                self._stop()  # before Lightning and the report print below it
        elif self.enabled:
            self.console.print(f"round {trainer.current_epoch + 1}/{trainer.max_epochs} {note}")

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


def describe(trainer: Trainer) -> str:
    """The last evaluation in a few words."""
    names = {"clean": "val/clean_accuracy", "backdoor": "val/backdoor_accuracy"}
    values = trainer.callback_metrics
    return "  ".join(
        f"{word} {100 * float(values[key]):.1f} %" for word, key in names.items() if key in values
    )


class RunReport(Callback):
    """Keeps one row a round of a federation, and at the end prints a table and draws a figure.

    ``rounds.csv``, ``run.json`` (command, seed, versions, commit, split), ``split.png`` (who has
    how many examples of which class) and ``accuracy.png`` go to ``dirpath``, the logger's folder
    if not given, nowhere without either. The split's numbers go to every logger as well. The rows
    travel in the checkpoint, so a resumed run reports all its rounds.

    Args:
        dirpath: where the files go.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self.rows: list[dict[str, float]] = []
        self.validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = not trainer.sanity_checking

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        values: dict[str, Any] = {}
        if self.validated:  # else callback_metrics still has those of an earlier round
            values = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        values |= pl_module.round_metrics
        self.validated = False
        row = {"round": float(trainer.current_epoch)} | {k: float(v) for k, v in values.items()}
        self.rows = [r for r in self.rows if r["round"] != row["round"]] + [row]
        if trainer.is_global_zero and self.folder is not None:
            write_rows(self.folder, self.rows)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # on every rank: looking up log_dir is a broadcast
        log_dir = trainer.log_dir if trainer.logger else None
        found = self.dirpath or log_dir
        self.folder = Path(found) if found else None

    @rank_zero_only
    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        federation, datamodule = trainer.federation, trainer.datamodule
        if not hasattr(datamodule, "partition"):
            return  # the loop refuses it, in one sentence
        labels = datamodule.train_set.labels.cpu()
        parts = datamodule.partition(federation.num_clients, federation.seed)
        split = {"settings": describe_setting(datamodule.split)} | split_summary(labels, parts)
        for logger in trainer.loggers:
            logger.log_hyperparams({"split": split})
        if self.folder is None:
            return
        facts = provenance(federation.seed) | {"clients_per_round": federation.clients_per_round}
        self.facts = facts | {"split": split}
        write_facts(self.folder, self.facts)
        self.label_counts = label_counts(labels, parts)

    @rank_zero_only
    def on_fit_end(self, trainer: Any, pl_module: LightningModule) -> None:
        if not self.rows or self.folder is None:
            return
        if trainer.stopped_by is not None:
            write_facts(self.folder, self.facts | {"stopped_by": trainer.stopped_by.name})
        write_rows(self.folder, self.rows)  # also where no round was left to run
        majority = trainer.federation.clients_per_round / 2
        plot_label_shares(self.label_counts).savefig(self.folder / SPLIT, dpi=150)
        plot_accuracies(self.rows, majority).savefig(self.folder / FIGURE, dpi=150)
        numbers = summary(self.rows, majority)
        table = Table(title=f"after {len(self.rows)} rounds")
        for name in numbers:
            table.add_column(name, justify="right")
        table.add_row(*cells(numbers, len(self.rows)))
        console = Console()
        console.print(table)
        written = f"{self.folder}: {ROUNDS}, {FACTS}, {SPLIT}, {FIGURE}"
        console.print(written, soft_wrap=True, highlight=False)
