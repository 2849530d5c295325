"""One table and one figure from several runs: ``python -m leadfl_pl.cli.report RUN [RUN ...]``."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.records.plots import plot_comparison
from leadfl_pl.records.rounds import Run, cells, read_run, summary


def comparison(runs: Mapping[str, Run]) -> Table:
    """The runs' summaries, a row each, as a table for the terminal."""
    table = Table("run")
    for i, (name, run) in enumerate(runs.items()):
        numbers = summary(run.rows, run.majority)
        if i == 0:
            for column in numbers:
                table.add_column(column, justify="right")
        table.add_row(name, *cells(numbers, len(run.rows)))
    return table


def write_comparison(runs: Mapping[str, Run], folder: Path) -> None:
    """Writes ``summary.csv`` (exact numbers) and ``comparison.png`` to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"run": name, "rounds": len(run.rows), **summary(run.rows, run.majority)}
        | {key: run.facts[key] for key in ("seed", "commit", "command")}
        for name, run in runs.items()
    ]
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    first = next(iter(runs.values()))
    figure = plot_comparison({name: run.rows for name, run in runs.items()}, first.majority)
    figure.savefig(folder / "comparison.png", dpi=150)


def main(args: list[str] | None = None) -> int:
    """Prints the table of the runs in the folders given, and writes it and a figure."""
    parser = argparse.ArgumentParser(prog="python -m leadfl_pl.cli.report", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, help="folders of runs, named by the last part"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("."), help="where the files go")
    arguments = parser.parse_args(args)
    try:
        runs = {path.name: read_run(path) for path in arguments.runs}
        if len(runs) < len(arguments.runs):
            raise ConfigError("the folders must differ in their last part, which names the run")
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_comparison(runs, arguments.output)
    Console().print(comparison(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
