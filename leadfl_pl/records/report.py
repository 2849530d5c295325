"""What a run leaves of its rounds: a row each, a table and figures at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from leadfl_pl.core.describe import describe
from leadfl_pl.core.errors import require_federation
from leadfl_pl.data.splits import label_counts
from leadfl_pl.data.splits import summary as split_summary
from leadfl_pl.records.plots import plot_accuracies, plot_label_shares, save_figure
from leadfl_pl.records.provenance import device_facts, provenance
from leadfl_pl.records.rounds import (
    ACCURACY,
    PROVENANCE,
    ROUNDS,
    SPLIT,
    as_text,
    shown_columns,
    summary,
    write_provenance,
    write_rows,
)
from leadfl_pl.records.weights_and_biases import define_summaries, log_report


class RunReport(Callback):
    """Keeps one row a round of a federation, and at the end prints a table and draws a figure.

    ``rounds.csv``, ``run.json`` (command, seed, versions, commit, machine, device, split, and all
    but the split of every process that the run was resumed from), ``split.png`` (who has how many
    examples of which class) and ``accuracy.png`` go to ``dirpath``, the logger's folder if not
    given, nowhere without either. A row has every scalar that was logged in its round before this
    callback's ``on_train_epoch_end``. The split's numbers go to every logger as well, the table and
    the figures to Weights & Biases. The rows travel in the checkpoint, so a resumed run reports all
    its rounds.

    Args:
        dirpath: where the files go.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self.rows: list[dict[str, float]] = []
        self.provenance: dict[str, Any] = {}
        self.processes: list[dict[str, Any]] = []  # provenance of those that a resumed run had
        self.logged_before: dict[str, Any] = {}  # what was logged before the round

    def state_dict(self) -> dict[str, Any]:
        own = {k: v for k, v in self.provenance.items() if k not in ("split", "earlier")}
        processes = [*self.processes, own | {"rounds": len(self.rows)}]
        return {"rows": self.rows, "processes": processes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.processes = list(state_dict["rows"]), list(state_dict.get("processes", []))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged_before = dict(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        # a value that nobody logged in this round is still the same object
        logged = {
            key: value
            for key, value in trainer.callback_metrics.items()
            if value is not self.logged_before.get(key) and value.numel() == 1
        }
        row = {"round": float(trainer.current_epoch)} | {k: float(v) for k, v in logged.items()}
        self.rows = [r for r in self.rows if r["round"] != row["round"]] + [row]
        if trainer.is_global_zero and self.folder is not None:
            write_rows(self.folder, self.rows)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            require_federation(self, trainer)
        # on every rank: looking up log_dir is a broadcast
        log_dir = trainer.log_dir if trainer.logger else None
        folder = self.dirpath or log_dir
        self.folder = Path(folder) if folder else None
        if stage == "fit" and trainer.current_epoch == 0:  # else the same Trainer fits on
            self.rows, self.processes = [], []

    @rank_zero_only
    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        federation, datamodule = trainer.federation, trainer.datamodule
        if not hasattr(datamodule, "partition"):
            return  # the loop refuses it, in one sentence
        labels = datamodule.train_set.labels.cpu()
        parts = datamodule.partition(federation.num_clients, federation.seed)
        split = {"settings": describe(datamodule.split)} | split_summary(labels, parts)
        for logger in trainer.loggers:
            logger.log_hyperparams({"split": split})
        define_summaries(trainer)
        facts = {"clients_per_round": federation.clients_per_round, "split": split}
        facts |= device_facts(trainer.strategy.root_device)
        self.provenance = describe(provenance(federation.seed) | facts)
        if self.processes:
            self.provenance["earlier"] = self.processes
        if self.folder is None:
            return
        write_provenance(self.folder, self.provenance)
        self.label_counts, self.classes = label_counts(labels, parts), labels.unique().tolist()

    @rank_zero_only
    def on_fit_end(self, trainer: Any, pl_module: LightningModule) -> None:
        if not self.rows or self.folder is None:
            return
        if trainer.stopped_by is not None:
            stopped = {"stopped_by": trainer.stopped_by.name}
            write_provenance(self.folder, self.provenance | stopped)
        write_rows(self.folder, self.rows)  # also where no round was left to run
        majority = trainer.federation.clients_per_round / 2
        name = Path(trainer.default_root_dir).resolve().name
        # PNG only: an experiment has thousands of runs, and a report of some draws all kinds
        shares = plot_label_shares(self.label_counts, name, self.classes)
        save_figure(shares, self.folder / SPLIT, ["png"])
        save_figure(plot_accuracies(self.rows, majority, name), self.folder / ACCURACY, ["png"])
        numbers = summary(self.rows, majority)
        figures = {"accuracy": self.folder / ACCURACY, "split": self.folder / SPLIT}
        log_report(trainer, numbers, figures)
        columns = shown_columns([numbers])
        table = Table(title=f"after {len(self.rows)} rounds", show_header=False)
        for name_and_text in zip(columns, as_text(numbers, columns, len(self.rows)), strict=True):
            table.add_row(*name_and_text)
        console = Console()
        console.print(table)
        written = f"{self.folder}: {ROUNDS}, {PROVENANCE}, {SPLIT}, {ACCURACY}"
        console.print(written, soft_wrap=True, highlight=False, markup=False)
