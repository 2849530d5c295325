"""Tables, figures and one page from the runs of an experiment: ``leadfl-pl experiment report``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from leadfl_pl.cli.federated import resolve
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.experiments.jobs import plan
from leadfl_pl.experiments.spec import Cell, read_experiment


def hashes(name: str, folder: Path, cells: Sequence[Cell]) -> list[str]:
    """Those of the cells' configurations, none where one cannot be resolved here."""
    try:
        return [job.record["hash"] for job in plan(name, cells, folder, resolve)]
    except ConfigError:
        return []


def main(args: list[str] | None = None) -> int:
    """Writes the report of an experiment.

    Returns:
        0; 2 for an experiment without a report.
    """
    parser = argparse.ArgumentParser(
        prog="leadfl-pl experiment report",
        description="Writes table.csv, .md and .tex, runs.csv, rounds.csv, figures and "
        "report.html: numbers over seeds with 95 % bootstrap intervals.",
    )
    parser.add_argument(
        "experiment", type=Path, help="its file, or the folder of its runs for what is there"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="of a file")
    parser.add_argument("-o", "--output", type=Path, help="where to; the folder of the runs")
    parser.add_argument("--collect", action="store_true", help="copy the runs' records as well")
    parser.add_argument("--allow-mixed", action="store_true", help="take runs of several versions")
    parser.add_argument(
        "--interquartile", action="store_true", help="interquartile means in place of means"
    )
    arguments = parser.parse_args(args)
    from leadfl_pl.experiments.report import write_report  # pandas and scipy take a second

    try:
        experiment, folder = None, arguments.experiment
        if not folder.is_dir():
            experiment = read_experiment(folder)
            folder = arguments.runs.expanduser() / experiment.name
        output = (arguments.output or folder).expanduser()
        table, notes = write_report(
            folder,
            output,
            experiment,
            collected=arguments.collect,
            allow_mixed=arguments.allow_mixed,
            interquartile=arguments.interquartile,
            hashes=partial(hashes, folder.name, folder),
        )
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(table)
    for note in notes:
        print(note, file=sys.stderr)
    print(f"{output}: report.html")
    return 0
