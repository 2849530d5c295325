"""``leadfl-pl init FILE``: a whole configuration to start from, the quickstart's or another's."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

from leadfl_pl.cli.federated import run

USAGE = """usage: leadfl-pl init FILE [--config CONFIG] [flags of leadfl-pl fit]

Writes every setting of a run to a new FILE, without paths to other configs: those of CONFIG and
the flags, or those of the quickstart and the flags. Its runs go to a folder named like FILE."""
QUICKSTART = (  # configs/quickstart.yaml, which is not there without a checkout
    "--model=leadfl_pl.FederatedClient",
    "--model.model=leadfl_pl.DigitsNet",
    "--model.defense=leadfl_pl.LeadFL",
    "--model.lr=0.1",
    "--data=leadfl_pl.Digits",
    "--data.batch_size=4",
    "--trainer.devices=1",
    "--trainer.max_epochs=30",
    "--trainer.federation.local_epochs=10",
    "--trainer.federation.schedule=leadfl_pl.BurstySchedule",
    "--trainer.federation.attack=leadfl_pl.PatternBackdoor",
    "--trainer.federation.aggregator=leadfl_pl.MultiKrum",
    "--trainer.federation.aggregator.f=1",
    "--trainer.federation.aggregator.m=5",
)


def main(args: list[str]) -> int:
    """Writes what ``fit --print_config`` prints to the file that ``args`` begins with."""
    if {"-h", "--help"}.intersection(args):
        print(USAGE)
        return 0
    if not args or args[0].startswith("-"):
        print("error: init must be followed by the file to write", file=sys.stderr)
        return 2
    file, flags = Path(args[0]), args[1:]
    if any(flag.partition("=")[0].endswith(".help") for flag in flags):
        return run(["fit", *flags])
    if not any(flag.startswith("--trainer.default_root_dir") for flag in flags):
        flags = [*flags, f"--trainer.default_root_dir=runs/{file.stem}"]
    if not any(flag.partition("=")[0] in ("-c", "--config") for flag in flags):
        flags = [*QUICKSTART, *flags]
    with redirect_stdout(io.StringIO()) as printed:
        try:
            return run(["fit", *flags, "--print_config"])
        except SystemExit as end:
            if end.code:
                return int(end.code)
    try:
        with file.open("x") as out:
            out.write(printed.getvalue())
    except OSError as error:
        print(f"error: {file} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    print(f"leadfl-pl fit --config {file} trains it")
    return 0
