"""A wandb sweep without a server: ``leadfl-pl sweep configs/sweeps/alpha.yaml``.

Reads the YAML that ``wandb sweep`` reads, runs every point of its grid one after the other with
the command that wandb would make, and prints one table. Points that have finished are not run
again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console

from leadfl_pl.cli.report import comparison, make_output, shortest_endings, write_comparison
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.yaml_files import read_mapping
from leadfl_pl.records.rounds import ACCURACY, Run, read_run

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


def command(sweep: dict[str, Any], point: Point) -> list[str]:
    """The command line of one point: the sweep's own, its macros filled in as wandb does.

    Raises:
        ConfigError: all points would be the same run, or there is no such program.
    """
    parts, program = sweep.get("command") or COMMAND, sweep.get("program")
    if not isinstance(parts, list) or "${args}" not in parts:
        raise ConfigError(
            f"command must be a list with ${{args}} in it, else all points are one run, got {parts}"
        )
    if "${program}" in parts and not (isinstance(program, str) and Path(program).is_file()):
        raise ConfigError(f"program must be a file, seen from here, got {program}")
    filled: list[str] = []
    for part in map(str, parts):
        if part == "${args}":
            filled += flags(point)
        elif part in ("${interpreter}", "python"):
            filled.append(sys.executable)
        elif part == "${program}":
            filled.append(str(program))
        elif part.startswith("${") and part != "${env}":
            raise ConfigError(f"command must have no {part}, which is filled in by a server only")
        elif part != "${env}":
            filled.append(part)
    # what is installed beside this Python is there without its folder on the PATH
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    executable = shutil.which(filled[0], path=folders)
    if executable is None:
        raise ConfigError(f"command must start with a program that is there, got {filled[0]}")
    return [executable, *filled[1:]]


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


def folder_name(label: str, point: Point) -> str:
    """A point's folder: its label if that is safe and unambiguous, else with a hash of its flags.

    >>> folder_name("a=0.4", {"a": 0.4}), folder_name("a=b/c", {"a": "b/c"})
    ('a=0.4', 'a=b_c-8a436200')
    """
    label = label.replace(", ", ",")
    safe = re.sub(r"[^\w.,=+-]+", "_", label, flags=re.ASCII)[:100]
    if safe == label and label.count("=") == len(point):
        return label
    return f"{safe}-{sha256(shlex.join(flags(point)).encode()).hexdigest()[:8]}"


def run_sweep(path: Path, output: Path, extra: list[str]) -> list[tuple[str, Run]]:
    """Runs what has not finished yet and returns each point's label and run."""
    sweep = read_mapping(path, "method and parameters")
    points = list(grid(sweep))
    commands = [command(sweep, point) for point in points]
    make_output(output)
    runs = []
    for point, parts, label in zip(points, commands, labels(points), strict=True):
        folder = output / folder_name(label, point)
        # without a server there is no wandb either: the run's own CSV is read
        parts += [f"--trainer.default_root_dir={folder}", "--trainer.logger=true", *extra]
        if not _finished(folder, parts):
            subprocess.run(parts, check=True)
        runs.append((label, read_run(folder)))
    return runs


def _finished(folder: Path, parts: list[str]) -> bool:
    """Whether the newest run in ``folder`` came to its end with the same arguments."""
    try:
        run = read_run(folder)
        program, *arguments = shlex.split(run.provenance["command"])
    except ValueError:
        return False
    if program == "python":
        arguments = arguments[1:]  # after the script
    ended = (run.folder / ACCURACY).is_file() and "stopped_by" not in run.provenance
    return ended and parts[-len(arguments) :] == arguments


def main(args: list[str] | None = None) -> int:
    """Runs the sweep; arguments that it does not know go to every run."""
    parser = argparse.ArgumentParser(prog="leadfl-pl sweep", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a wandb sweep with method: grid")
    parser.add_argument("-o", "--output", type=Path, help="runs/sweeps/NAME if not given")
    arguments, extra = parser.parse_known_args(args)
    output = arguments.output or Path("runs/sweeps") / arguments.sweep.stem
    try:
        runs = run_sweep(arguments.sweep, output, extra)
        write_comparison(runs, output)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {shlex.join(error.cmd)} ended with {error.returncode}", file=sys.stderr)
        return error.returncode
    Console().print(comparison(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
