"""What Weights & Biases shows of a run besides its curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

SUMMARIES = {"val/clean_accuracy": "max,last", "val/backdoor_accuracy": "min,max,last"}


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """Those of a Trainer's loggers that write to Weights & Biases."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def define_summaries(trainer: Trainer) -> None:
    """Says which extremes of the accuracies a run's overview shows, besides the last values."""
    for logger in wandb_loggers(trainer):
        for name, summary in SUMMARIES.items():
            logger.experiment.define_metric(name, summary=summary)


def log_report(trainer: Trainer, numbers: Mapping[str, float], figures: Mapping[str, Path]) -> None:
    """Logs the end of a run.

    Args:
        trainer: of the run.
        numbers: its summary: to the run's overview and, as a table, to its media.
        figures: pictures by name, to its media.
    """
    for logger in wandb_loggers(trainer):
        logger.experiment.summary.update(dict(numbers))
        rows = [[name, value] for name, value in numbers.items()]
        logger.log_table("report", columns=["number", "value"], data=rows)
        for name, path in figures.items():
            logger.log_image(name, [str(path)])
