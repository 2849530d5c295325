"""``leadfl-pl experiment``: runs an experiment, and reports what its runs say."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from leadfl_pl.cli import experiment_report
from leadfl_pl.cli.federated import resolve
from leadfl_pl.cli.federated import run as fit
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.experiments.jobs import FAILED, STOPPED, Job, plan, unfinished
from leadfl_pl.experiments.run import run_jobs
from leadfl_pl.experiments.slurm import submit_jobs
from leadfl_pl.experiments.spec import check_axes, read_experiment
from leadfl_pl.trainer.devices import usable_cores

USAGE = """usage: leadfl-pl experiment {run,report} FILE ...

  run     runs what has not been run yet
  report  writes tables, figures and one page

leadfl-pl experiment run --help says more."""


def main(args: list[str]) -> int:
    """Runs ``experiment run`` or ``experiment report``."""
    if args[:1] == ["run"]:
        return run(args[1:])
    if args[:1] == ["report"]:
        return experiment_report.main(args[1:])
    helped = args[:1] in (["-h"], ["--help"])
    print(USAGE, file=sys.stdout if helped else sys.stderr)
    return 0 if helped else 2


def run(args: list[str]) -> int:
    """Runs the cells of an experiment that have not come to their end.

    Returns:
        0; 1 where a run failed; 2 for an experiment that cannot be; 130 where it was stopped.
    """
    parser = argparse.ArgumentParser(
        prog="leadfl-pl experiment run",
        description="Runs all combinations of an experiment's axes and seeds that are not finished "
        "yet. Ctrl-C lets the running ones end after their rounds; the same command goes on.",
    )
    parser.add_argument("file", type=Path, help="see configs/experiments")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"), help="where to")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="runs at a time")
    parser.add_argument(
        "--slurm", nargs="*", metavar="KEY=VALUE", help="queue them, with parameters of submitit"
    )
    parser.add_argument("--dry-run", action="store_true", help="only list them, with their time")
    parser.add_argument("--allow-mixed", action="store_true", help="keep runs of other commits")
    arguments = parser.parse_args(args)
    console = Console(file=sys.stdout)  # which resolve takes for itself
    try:
        require_jobs(arguments.jobs)
        experiment = read_experiment(arguments.file)
        check_axes(arguments.file, experiment.axes)
        folder = arguments.runs.expanduser() / experiment.name
        with console.status("Reading the configurations of all runs"):
            jobs = plan(experiment.name, experiment.cells(), folder, resolve)
        left = unfinished(jobs, arguments.allow_mixed)
        if arguments.dry_run:
            console.print(listing(jobs, left, arguments.jobs, known_seconds(experiment.name)))
            return 0
        if arguments.slurm is None:
            records = run_jobs(left, fit, arguments.jobs)
        else:
            records = submit_jobs(left, fit, folder, parameters_of(arguments.slurm))
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{len(jobs) - len(unfinished(jobs, True))} of {len(jobs)} runs are finished: {folder}")
    return report_ends(records, of=len(left))


def require_jobs(at_once: int) -> None:
    """Raises :class:`ConfigError` unless so many runs can be made at a time."""
    if at_once < 1:
        raise ConfigError(f"--jobs must be >= 1, got {at_once}")


def report_ends(records: Sequence[Mapping[str, Any]], of: int) -> int:
    """Lists the runs that failed; 1 if any did, 130 unless all ``of`` them have ended, 0 if so."""
    for record in records:
        if record["status"] == FAILED:
            name = ", ".join([*record["labels"].values(), f"seed {record['seed']}"])
            print(f"failed: {name}: {record['error']}", file=sys.stderr)
    states = {record["status"] for record in records}
    return 1 if FAILED in states else 130 if STOPPED in states or len(records) < of else 0


def parameters_of(words: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words as a mapping.

    >>> parameters_of(["timeout_min=60", "slurm_partition=gpu"])
    {'timeout_min': 60, 'slurm_partition': 'gpu'}
    """
    parameters = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--slurm must be followed by KEY=VALUE, got {word}")
        parameters[key] = yaml.safe_load(value)
    return parameters


def default_jobs() -> int:
    """As many runs at a time as there are GPUs, or cores where there is none."""
    return torch.cuda.device_count() or usable_cores()


def known_seconds(name: str) -> list[float]:
    """The seconds a round in the table under ``results`` of this experiment, none without one."""
    path = Path("results", name, "table.csv")
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        seconds = [row.get("seconds a round") for row in csv.DictReader(file)]
    return [float(value) for value in seconds if value]


def listing(jobs: list[Job], left: list[Job], at_once: int, known: list[float]) -> Table:
    """The jobs, how far they are, and how long what is left takes.

    That is judged by what is finished; by ``known`` seconds a round until something is.
    """
    table = Table("run", "rounds", "state", "seconds")
    records = [job.read() for job in jobs]
    ended = [r["seconds_per_round"] for j, r in zip(jobs, records, strict=True) if j not in left]
    for job, record in zip(jobs, records, strict=True):
        seconds = f"{record['seconds']:.0f}" if "seconds" in record else ""
        state = record.get("status", "to run")
        table.add_row(str(job.cell), f"{job.rounds_done()} of {job.rounds}", state, seconds)
    table.caption = f"{len(left)} to run; how long that takes is known when one is finished"
    if pace := ended or known:
        rounds = sum(job.rounds - job.rounds_done() for job in left)
        minutes = sum(pace) / len(pace) * rounds / at_once / 60
        by = "" if ended else ", judged by results/"
        table.caption = f"{len(left)} to run, about {minutes:.0f} minutes, {at_once} at a time{by}"
    return table
