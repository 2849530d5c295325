"""One table and one figure from several runs: ``leadfl-pl report RUN [RUN ...]``."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.records.folders import VERSION, number_of
from leadfl_pl.records.plots import plot_comparison, save_figure
from leadfl_pl.records.rounds import (
    DETAILS,
    PARTS,
    ROUNDS,
    SUMMARY,
    Run,
    as_text,
    read_run,
    shown_columns,
    summary,
)

NamedRuns = Sequence[tuple[str, Run]]


def shortest_endings(names: Sequence[str], separator: str) -> list[str]:
    """The last parts of each name, as few of them as tell all names apart.

    >>> shortest_endings(["runs/a/0", "runs/b/0", "runs/b/1"], "/")
    ['a/0', 'b/0', 'b/1']
    """
    split = [name.split(separator) for name in names]
    for count in range(1, max(map(len, split))):
        endings = [separator.join(parts[-count:]) for parts in split]
        if len(set(endings)) == len(set(names)):
            return endings
    return list(names)


def comparison(runs: NamedRuns) -> Table:
    """The runs' summaries, a row each, as a table for the terminal."""
    summaries = [summary(run.rows, run.majority) for _, run in runs]
    columns = shown_columns(summaries, hidden=(*DETAILS, *PARTS))
    table = Table(padding=0)  # words stay whole in 80 columns
    table.add_column("run", overflow="fold")  # a name cut off may be another run's
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for (name, run), numbers in zip(runs, summaries, strict=True):
        table.add_row(Text(name), *as_text(numbers, columns, len(run.rows)))
    return table


def make_output(folder: Path) -> None:
    """Makes the folder for a comparison.

    Raises:
        ConfigError: it cannot be one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output must be a folder, got {folder}: {error.strerror}") from error


def write_comparison(runs: NamedRuns, folder: Path) -> None:
    """Writes ``summary.csv`` (exact numbers) and ``comparison.png``, ``.svg``, ``.pdf``."""
    rows = [
        {"run": name, "rounds": len(run.rows), **summary(run.rows, run.majority)}
        | {"seed": run.provenance["seed"]}
        | {key: ", ".join(run.history(key)) for key in ("commit", "command")}
        for name, run in runs
    ]
    numbers = [name for name in SUMMARY if any(name in row for row in rows)]
    columns = ["run", "rounds", *numbers, "seed", "commit", "command"]
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    majority = runs[0][1].majority
    figure = plot_comparison([(name, run.rows) for name, run in runs], majority)
    save_figure(figure, folder / "comparison.png")


def main(args: list[str] | None = None) -> int:
    """Prints the table of the runs in the folders given, and writes it and a figure."""
    parser = argparse.ArgumentParser(prog="leadfl-pl report", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="folders of runs, named by the end of their path"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("."), help="where the files go")
    arguments = parser.parse_args(args)
    folders = {os.path.abspath(folder): folder for folder in arguments.runs}
    names = shortest_endings(list(folders), os.sep)
    try:
        runs = [(name, read_run(path)) for name, path in zip(names, folders.values(), strict=True)]
        make_output(arguments.output)
        write_comparison(runs, arguments.output)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.print(comparison(runs))
    for path, (name, run) in zip(folders.values(), runs, strict=True):
        if run.folder != path:
            versions = sorted(run.folder.parent.glob(f"{VERSION}*"), key=number_of)
            of = sum((version / ROUNDS).is_file() for version in versions)
            newer = "" if versions[-1] == run.folder else f"; {versions[-1].name} has no rounds"
            console.print(f"{name}: {run.folder.name}, the newest of {of}{newer}", markup=False)
    return 0
