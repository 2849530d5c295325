"""The command ``leadfl-pl`` and its subcommands."""

from __future__ import annotations

import sys
from collections.abc import Callable

from leadfl_pl.cli import experiment, init, report, sweep
from leadfl_pl.cli.federated import run

HELP = """usage: leadfl-pl SUBCOMMAND ..., python cli.py SUBCOMMAND ...

  fit       trains a federation and measures it after every round
  validate  measures a checkpoint on the validation data
  test      measures a checkpoint on the test data
  init      writes a whole configuration to start from
  experiment  runs an experiment of many settings and seeds, or reports it
  sweep     runs every point of a grid of settings and compares them
  report    compares runs in one table and one figure

leadfl-pl SUBCOMMAND --help says more of each."""
FIT = ("fit", "validate", "test")
TOOLS: dict[str, Callable[[list[str]], int]] = {
    "experiment": experiment.main,
    "init": init.main,
    "sweep": sweep.main,
    "report": report.main,
}


def main(args: list[str] | None = None) -> int:
    """Runs a subcommand and returns its exit status: see :func:`run`."""
    if args is None:
        args = sys.argv[1:]
        sys.path.insert(0, "")  # as with python -m: a class path may name a module of this folder
    name = args[0] if args else None
    if name in ("-h", "--help"):
        print(HELP)
        return 0
    if name in TOOLS:
        return TOOLS[name](args[1:])
    if name not in FIT:
        known = ", ".join([*FIT, *TOOLS])
        print(f"error: SUBCOMMAND must be one of {known}, got {name}", file=sys.stderr)
        return 2
    return run(args)
