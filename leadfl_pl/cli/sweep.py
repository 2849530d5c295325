"""A wandb sweep without a server: ``leadfl-pl sweep configs/sweeps/alpha.yaml``.

Reads the YAML that ``wandb sweep`` reads, runs every point of its grid with the arguments that
wandb would give, as an experiment's runs, and prints one table.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from leadfl_pl.cli.experiment import report_ends, require_jobs
from leadfl_pl.cli.federated import resolve
from leadfl_pl.cli.federated import run as fit
from leadfl_pl.cli.report import comparison, make_output, shortest_endings, write_comparison
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.yaml_files import read_mapping
from leadfl_pl.experiments.jobs import plan, unfinished
from leadfl_pl.experiments.run import run_jobs
from leadfl_pl.experiments.spec import Cell
from leadfl_pl.records.rounds import read_run

Point = dict[str, Any]
COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]


def grid(sweep: dict[str, Any]) -> Iterator[Point]:
    """The points of a sweep's grid, in the order of its values.

    >>> list(grid({"method": "grid", "parameters": {"a": {"values": [1, 2]}, "b": {"value": 3}}}))
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]

    Raises:
        ConfigError: the sweep is no grid, or a parameter has no list of values.
    """
    if sweep.get("method") != "grid":
        raise ConfigError(f"method must be grid without a server, got {sweep.get('method')}")
    parameters = sweep.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise ConfigError(f"parameters must be a mapping of keys to values, got {parameters}")
    lists = []
    for key, spec in parameters.items():
        if not isinstance(spec, dict) or not {"value", "values"} & set(spec):
            raise ConfigError(f"parameters.{key} must have value or values, got {spec}")
        values = spec.get("values", [spec.get("value")])
        if not isinstance(values, list) or not values:
            raise ConfigError(f"parameters.{key}.values must be a list of values, got {values}")
        lists.append([(str(key), value) for value in values])
    for point in itertools.product(*lists):
        yield dict(point)


def flags(point: Point) -> list[str]:
    """The flags of one point, as wandb writes them."""
    return [f"--{key}={value}" for key, value in point.items()]


def fixed_arguments(sweep: dict[str, Any]) -> list[str]:
    """The arguments of ``leadfl-pl fit`` in a sweep's command, ``${args}`` in the point's place.

    Raises:
        ConfigError: it is not the command of a federation, or all points would be the same run.
    """
    parts = sweep.get("command") or COMMAND
    if not isinstance(parts, list) or parts.count("${args}") != 1:
        raise ConfigError(
            f"command must be a list with ${{args}} in it, else all points are one run, got {parts}"
        )
    filled = [sweep.get("program") if part == "${program}" else part for part in map(str, parts)]
    words = [str(part) for part in filled if part not in ("${env}", "${interpreter}", "python")]
    if len(words) < 2 or Path(words[0]).stem not in ("cli", "leadfl-pl") or words[1] != "fit":
        raise ConfigError(f"command must run leadfl-pl fit or cli.py fit, got {filled}")
    for word in words:
        if word.startswith("${") and word != "${args}":
            raise ConfigError(f"command must have no {word}, which is filled in by a server only")
    return words[2:]


def labels(points: Sequence[Point]) -> list[str]:
    """A name for each point: its keys and values, each with the end that tells it from the others.

    >>> labels([{"model.lr": 1, "rule": "rules/median.yaml"}, {"model.lr": 1, "rule": "krum.yaml"}])
    ['lr=1, rule=median.yaml', 'lr=1, rule=krum.yaml']
    """
    texts: list[list[str]] = [[] for _ in points]
    keys = list(points[0])
    for key, name in zip(keys, shortest_endings(keys, "."), strict=True):
        values = shortest_endings([str(point[key]) for point in points], "/")
        for text, value in zip(texts, values, strict=True):
            text.append(f"{name}={value}")
    return [", ".join(text) for text in texts]


def cells(sweep: dict[str, Any], extra: Sequence[str]) -> Iterator[Cell]:
    """The runs of a sweep; ``extra`` arguments go to all of them."""
    points = list(grid(sweep))
    fixed = fixed_arguments(sweep)
    at = fixed.index("${args}")
    for point, label in zip(points, labels(points), strict=True):
        # without a server there is no wandb either: the run's own CSV is read
        parts = [*fixed[:at], *flags(point), *fixed[at + 1 :], "--trainer.logger=true", *extra]
        if not any(part.startswith("--trainer.devices") for part in parts):
            parts.append("--trainer.devices=1")
        seed = resolve(["fit", *parts])["seed_everything"]
        yield Cell({"point": label}, point, seed, parts)


def main(args: list[str] | None = None) -> int:
    """Runs the sweep; arguments that it does not know go to every run."""
    parser = argparse.ArgumentParser(prog="leadfl-pl sweep", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a wandb sweep with method: grid")
    parser.add_argument("-o", "--output", type=Path, help="runs/sweeps/NAME if not given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--allow-mixed", action="store_true", help="keep runs of other commits")
    arguments, extra = parser.parse_known_args(args)
    output = (arguments.output or Path("runs/sweeps") / arguments.sweep.stem).expanduser()
    try:
        require_jobs(arguments.jobs)
        sweep = read_mapping(arguments.sweep, "method and parameters")
        jobs = plan(arguments.sweep.stem, cells(sweep, extra), output, resolve)
        make_output(output)
        left = unfinished(jobs, arguments.allow_mixed)
        if status := report_ends(run_jobs(left, fit, arguments.jobs), of=len(left)):
            return status
        runs = [(job.cell.labels["point"], read_run(job.folder)) for job in jobs]
        write_comparison(runs, output)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(comparison(runs))
    return 0
