"""What a run leaves of its rounds: a row each, a table and figures at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from leadfl_pl.core.describe import describe
from leadfl_pl.data.splits import label_counts
from leadfl_pl.data.splits import summary as split_summary
from leadfl_pl.records.plots import plot_accuracies, plot_label_shares
from leadfl_pl.records.provenance import provenance
from leadfl_pl.records.rounds import (
    FACTS,
    FIGURE,
    ROUNDS,
    SPLIT,
    cells,
    summary,
    write_facts,
    write_rows,
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
        values |= {
            k: v for k, v in trainer.callback_metrics.items() if k.startswith(("round/", "train/"))
        }
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
        split = {"settings": describe(datamodule.split)} | split_summary(labels, parts)
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
