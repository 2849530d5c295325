"""A wandb sweep without a server: ``python -m leadfl_pl.cli.sweep configs/sweeps/alpha.yaml``.

Reads the YAML that ``wandb sweep`` reads, runs every point of its grid one after the other with
the flags that wandb would make, and prints one table. Points that have finished are not run
again.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from leadfl_pl.cli.report import comparison, write_comparison
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.records.rounds import FIGURE, Run, read_run

Point = dict[str, Any]


def grid(sweep: dict[str, Any]) -> Iterator[Point]:
    """The points of a sweep's grid, in the order of its values.

    >>> list(grid({"method": "grid", "parameters": {"a": {"values": [1, 2]}, "b": {"value": 3}}}))
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]

    Raises:
        ConfigError: the sweep is no grid, or a parameter has no list of values.
    """
    if sweep.get("method") != "grid":
        raise ConfigError(f"method must be grid without a server, got {sweep.get('method')}")
    lists = []
    for key, spec in sweep["parameters"].items():
        if not {"value", "values"} & set(spec):
            raise ConfigError(f"parameters.{key} must have value or values, got {sorted(spec)}")
        lists.append([(key, v) for v in spec.get("values", [spec.get("value")])])
    for point in itertools.product(*lists):
        yield dict(point)


def command(sweep: dict[str, Any], point: Point) -> list[str]:
    """The command line of one point: the sweep's own, its macros filled in as wandb does."""
    filled: list[str] = []
    for part in sweep.get("command", ["${env}", "python", "${program}", "${args}"]):
        if part == "${args}":
            filled += [f"--{key}={value}" for key, value in point.items()]
        elif part in ("${interpreter}", "python"):
            filled.append(sys.executable)
        elif part == "${program}":
            filled.append(sweep["program"])
        elif part != "${env}":
            filled.append(part)
    return filled


def point_name(point: Point) -> str:
    """A folder name for a point: the last part of each key, and its value."""
    return ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())


def run_sweep(path: Path, output: Path, extra: list[str]) -> dict[str, Run]:
    """Runs what has not finished yet and returns all runs by name."""
    sweep = yaml.safe_load(path.read_text())
    runs = {}
    for point in grid(sweep):
        folder = output / point_name(point)
        # without a server there is no wandb either: the run's own CSV is read
        flags = [f"--trainer.default_root_dir={folder}", "--trainer.logger=true", *extra]
        parts = [*command(sweep, point), *flags]
        if not _finished(folder, parts):
            subprocess.run(parts, check=True)
        runs[folder.name] = read_run(folder)
    return runs


def _finished(folder: Path, parts: list[str]) -> bool:
    """Whether the newest run in ``folder`` came to its end with the same command."""
    try:
        run = read_run(folder)
    except FileNotFoundError:
        return False
    program = next(i for i, part in enumerate(parts) if part.endswith(".py"))
    flags = " ".join(parts[program + 1 :])
    ended = (run.folder / FIGURE).is_file() and "stopped_by" not in run.facts
    return ended and run.facts["command"].endswith(f".py {flags}")


def main(args: list[str] | None = None) -> int:
    """Runs the sweep; arguments that it does not know go to every run."""
    parser = argparse.ArgumentParser(prog="python -m leadfl_pl.cli.sweep", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a wandb sweep with method: grid")
    parser.add_argument("-o", "--output", type=Path, help="runs/sweeps/NAME if not given")
    arguments, extra = parser.parse_known_args(args)
    output = arguments.output or Path("runs/sweeps") / arguments.sweep.stem
    try:
        runs = run_sweep(arguments.sweep, output, extra)
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(error.cmd)} ended with {error.returncode}", file=sys.stderr)
        return error.returncode
    write_comparison(runs, output)
    Console().print(comparison(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
