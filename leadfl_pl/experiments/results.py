"""The results of an experiment: a table of its runs, and one of their rounds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.experiments.jobs import FAILED, FINISHED, RECORD, code, read_record
from leadfl_pl.experiments.spec import COSTS, Cell, Experiment, check_axes
from leadfl_pl.federation.server import NO_UPDATE
from leadfl_pl.records.provenance import without_places
from leadfl_pl.records.rounds import read_run, summary

KEYS = ("experiment", "labels", "settings", "seed", "hash", "status", "command", "commit")
DIVERGED, MISSING = "diverged", "missing"  # beside the states that a run's record has
DIVERGENCE = ("FloatingPointError", NO_UPDATE)  # what such an error says
ACCURACIES = {"main accuracy": "val/clean_accuracy", "backdoor accuracy": "val/backdoor_accuracy"}
Record = dict[str, Any]  # what ``cell.json`` says
Hashes = Callable[[Sequence[Cell]], Sequence[str]]  # of cells' configurations as they are today


class Results(NamedTuple):
    """An experiment's runs as tables."""

    name: str
    axes: list[str]
    runs: pd.DataFrame  # a row each: axes, seed, status, error, hash, commit, command, numbers
    rounds: pd.DataFrame  # of finished runs, a row each: axes, seed, round, ACCURACIES, burst
    folders: dict[str, Path]  # by hash
    notes: list[str]  # what a reader of the numbers must know


def read_results(
    folder: Path,
    experiment: Experiment | None = None,
    allow_mixed: bool = False,
    hashes: Hashes | None = None,
) -> Results:
    """Reads the runs in the folders under ``folder``.

    Args:
        folder: of one experiment, with a folder for each run.
        experiment: says which runs there should be, and their order; all that there are if None.
        allow_mixed: take runs of several commits, or of settings that were edited since.
        hashes: those of cells, to find a run whose command is written otherwise, and one from
            before an edit.

    Raises:
        ConfigError: there are no runs, a record is damaged, an axis is called like another column,
            two runs are of the same cell, or runs are of several commits, or of other settings than
            this commit's, and that is not allowed.
    """
    folders = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{RECORD}"))}
    records = [_checked(path, read_record(path)) for path in folders.values()]
    if not records:
        raise ConfigError(
            f"{folder} must have folders of runs with {RECORD} in them, got none: "
            "leadfl-pl experiment run makes them"
        )
    folders = {r["hash"]: path for r, path in zip(records, folders.values(), strict=True)}
    notes = []
    if experiment is None:
        _refuse_other_axes(folder, records)
        records.sort(key=lambda r: [*map(_natural, r["labels"].values()), r["seed"]])
    else:
        records, others = _planned(records, experiment, hashes)
        if others:
            names = ", ".join(record["hash"] for record in others)
            notes.append(f"not shown, as no cell of {experiment.name} is theirs: {names}")
        if hashes:
            notes += _edited(folder, records, experiment, hashes, allow_mixed)
    check_axes(folder, records[0]["labels"])
    _refuse_twice(folder, records)
    notes += _commits(folder, records, allow_mixed) + _own_code(folder, records, allow_mixed)
    runs, rounds = [], []
    for record in records:
        labels = record["labels"] or {"experiment": record["experiment"]}
        row = labels | {key: record.get(key) for key in ("seed", "status", "error")}
        diverged = any(words in str(record.get("error")) for words in DIVERGENCE)
        if record["status"] == FAILED and diverged:
            row["status"] = DIVERGED
        if row["status"] == FINISHED:
            run = read_run(folders[record["hash"]])
            row |= summary(run.rows, run.majority)
            row |= {name: record.get(key) for name, key in COSTS.items()}
            for values in run.rows:
                accuracies = {name: values.get(key, nan) for name, key in ACCURACIES.items()}
                burst = values["round/malicious_sampled"] > run.majority
                at = {"seed": record["seed"], "round": int(values["round"])}
                rounds.append(labels | at | accuracies | {"burst": burst})
        runs.append(row | {key: record.get(key) for key in ("hash", "commit", "command")})
    table = pd.DataFrame(runs)
    table = table.astype({name: float for name in COSTS if name in table})
    name = records[0]["experiment"]
    return Results(name, list(labels), table, pd.DataFrame(rounds), folders, notes)


def _checked(folder: Path, record: Record) -> Record:
    if not isinstance(record, dict) or (missing := [key for key in KEYS if key not in record]):
        got = f"no {', '.join(missing)}" if isinstance(record, dict) else type(record).__name__
        raise ConfigError(f"{folder / RECORD} must have {', '.join(KEYS)}, got {got}")
    return record


def _natural(label: str) -> list[tuple[float, str]]:
    """Sorts "alpha=10" after "alpha=2"."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [(float(p), "") if i % 2 else (-1.0, p) for i, p in enumerate(parts)]


def _refuse_other_axes(folder: Path, records: Sequence[Record]) -> None:
    for record in records:
        if list(record["labels"]) != list(records[0]["labels"]):
            raise ConfigError(
                f"{folder} must have runs of the same axes, got {', '.join(record['labels'])} "
                f"for {record['hash']} and {', '.join(records[0]['labels'])} for the others: "
                "report the experiment's file"
            )


def _refuse_twice(folder: Path, records: Sequence[Record]) -> None:
    seen: dict[tuple[Any, ...], Record] = {}
    for record in records:
        first = seen.setdefault((*record["labels"].values(), record["seed"]), record)
        if first is not record:
            name = ", ".join([*record["labels"].values(), f"seed {record['seed']}"])
            raise ConfigError(
                f"{folder} must have one run of {name}, got {first['hash']} and {record['hash']}"
            )


def _planned(
    records: Sequence[Record], experiment: Experiment, hashes: Hashes | None
) -> tuple[list[Record], list[Record]]:
    """The records of an experiment's cells, with stand-ins for those missing, and the others."""
    by_command: dict[str, list[Record]] = {}
    for record in records:
        by_command.setdefault(record["command"], []).append(record)
    cells = list(experiment.cells())
    found = []
    for cell in cells:
        commands = (cell.command, without_places(cell.command))  # the latter where it was collected
        found.append(next((by_command.pop(c) for c in commands if c in by_command), []))
    unclear = [i for i, own in enumerate(found) if len(own) != 1]
    left = [r for own in [*by_command.values(), *(found[i] for i in unclear)] for r in own]
    if hashes and left and unclear:  # one configuration can be written in several ways
        by_hash = {record["hash"]: record for record in left}
        for i, digest in zip(unclear, hashes([cells[i] for i in unclear]), strict=False):
            if digest in by_hash:
                found[i] = [by_hash[digest]]
    planned, taken = [], set()
    for cell, own in zip(cells, found, strict=True):
        place = {"experiment": experiment.name, "labels": cell.labels, "seed": cell.seed}
        for record in own or [{"status": MISSING}]:
            taken.add(record.get("hash"))
            planned.append(record | place | {"command": cell.command})
    return planned, [record for record in records if record["hash"] not in taken]


def _edited(
    folder: Path,
    records: Sequence[Record],
    experiment: Experiment,
    hashes: Hashes,
    allow_mixed: bool,
) -> list[str]:
    """Compares the configurations of runs of this commit with those of today."""
    here = code().partition("+")[0]
    runs = {
        (*record["labels"].values(), record["seed"]): record["hash"]
        for record in records
        if record["status"] != MISSING and record["commit"].partition("+")[0] == here
    }
    cells = [c for c in experiment.each_level() if (*c.labels.values(), c.seed) in runs]
    digests = hashes(cells) if cells else []
    names = [(*cell.labels.values(), cell.seed) for cell in cells]
    edited = "; ".join(
        str(cell)
        for cell, name, digest in zip(cells, names, digests, strict=False)
        if digest != runs[name]
    )
    if not edited or allow_mixed:
        return [f"runs of other settings than today's: {edited}"] * bool(edited)
    raise ConfigError(
        f"{folder} must have runs of the settings as they are, got others for {edited}: a config, "
        "or the package, was edited since; leadfl-pl experiment run makes them anew, or take all "
        "with --allow-mixed"
    )


def _commits(folder: Path, records: Sequence[Record], allow_mixed: bool) -> list[str]:
    counts = Counter(str(r["commit"]) for r in records if r["status"] != MISSING)
    if len(counts) <= 1 and ", " not in "".join(counts):
        return []
    got = ", ".join(f"{commit} ({count})" for commit, count in sorted(counts.items()))
    if allow_mixed:
        return [f"runs of several commits: {got}"]
    raise ConfigError(
        f"{folder} must have runs of one commit, got {got}: run those of one again, "
        "or take all with --allow-mixed"
    )


def _own_code(folder: Path, records: Sequence[Record], allow_mixed: bool) -> list[str]:
    digests: dict[str, set[str]] = {}
    for record in records:
        for name, digest in (record.get("own_code") or {}).items():
            digests.setdefault(name, set()).add(digest)
    changed = ", ".join(sorted(name for name, seen in digests.items() if len(seen) > 1))
    if not changed or allow_mixed:
        return [f"runs before and after a change of {changed}"] * bool(changed)
    raise ConfigError(
        f"{folder} must have runs of one version of {changed}, got several: run the old ones "
        "again, or take all with --allow-mixed"
    )
