"""The record of a run: one row a round in ``rounds.csv``, its provenance in ``run.json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.values import Row
from leadfl_pl.metrics import detection_rates, half_life, lifespans, restricted_mean
from leadfl_pl.records.files import write_whole
from leadfl_pl.records.folders import LOGS, VERSION, number_of

ROUNDS, PROVENANCE, ACCURACY, SPLIT = "rounds.csv", "run.json", "accuracy.png", "split.png"
COLUMNS = ("round", "round/malicious_sampled")  # that every row has
KEYS = ("command", "seed", "commit", "clients_per_round")  # that run.json has
COUNTS = ("rejected updates", "failed clients")  # of a summary
RATES = ("detection precision", "detection recall", "detection false-positive rate")
DETAILS = ("recovery half-life", *RATES)  # in the table of one run, too wide for one of several
PARTS = ("bursts", "censored bursts", "attackers sampled")  # in the text of other numbers
SUMMARY = (
    "main accuracy",
    "backdoor average",
    "backdoor final",
    "rounds with a malicious majority",
    *COUNTS,
    "backdoor lifespan",
    "attackers selected",
    *DETAILS,
    *PARTS,
)


class Run(NamedTuple):
    """A run as it lies in its folder."""

    folder: Path
    rows: list[dict[str, float]]
    provenance: dict[str, Any]

    @property
    def majority(self) -> float:
        """More malicious clients in a round than this are a majority."""
        return float(self.provenance["clients_per_round"]) / 2

    def history(self, key: str) -> list[str]:
        """What ``run.json`` says under ``key``, of each process of a resumed run, each once."""
        processes = [*self.provenance.get("earlier", []), self.provenance]
        return list(dict.fromkeys(process[key] for process in processes if process[key]))


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Writes ``rounds.csv``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, keys)
    writer.writeheader()
    writer.writerows({**row, "round": int(row["round"])} for row in rows)
    write_whole(folder / ROUNDS, text.getvalue().encode())


def write_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Writes ``run.json``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / PROVENANCE, (json.dumps(dict(provenance), indent=2) + "\n").encode())


def read_run(folder: Path) -> Run:
    """Reads the record in ``folder``, or in the newest ``logs/version_N`` under it.

    Raises:
        ConfigError: there is none, or it is not as :class:`~leadfl_pl.RunReport` writes it.
    """
    try:
        versions = [f for f in (folder / LOGS).glob(f"{VERSION}*") if number_of(f) >= 0]
        for place in [folder, *sorted(versions, key=number_of, reverse=True)]:
            if (place / ROUNDS).is_file():
                rows = _read_rows(place / ROUNDS)
                return Run(place, rows, _read_provenance(place / PROVENANCE))
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    raise ConfigError(f"{folder} must be a run's folder, with {ROUNDS} or {LOGS}/{VERSION}N in it")


def _read_rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        try:
            rows = [{key: float(value) for key, value in row.items() if value} for row in reader]
        except (ValueError, TypeError, csv.Error) as error:
            line = f"line {reader.line_num} does not"
            raise ConfigError(f"{path} must hold numbers below its column names: {line}") from error
    if not rows:
        raise ConfigError(f"{path} must have a row for each round, got none")
    for column in COLUMNS:
        if not all(isfinite(row.get(column, nan)) for row in rows):
            got = f"the columns {', '.join(reader.fieldnames or ())}"
            raise ConfigError(f"{path} must have a number for {column} in every row, got {got}")
    return rows


def _read_provenance(path: Path) -> dict[str, Any]:
    try:
        provenance: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} must be JSON, got {error}") from error
    missing = [key for key in KEYS if not isinstance(provenance, dict) or key not in provenance]
    if missing:
        raise ConfigError(f"{path} must have {', '.join(KEYS)}, got no {', '.join(missing)}")
    for key, kind in (("command", str), ("clients_per_round", int)):
        if not isinstance(provenance[key], kind):
            raise ConfigError(f"{path}: {key} must be {kind.__name__}, got {provenance[key]!r}")
    return provenance


def summary(rows: Sequence[Row], majority: float) -> dict[str, float]:
    """The numbers of a run, as far as it has them; accuracies and rates in [0, 1].

    A burst, after which :class:`~leadfl_pl.BackdoorLifespan` and
    :class:`~leadfl_pl.RecoveryHalfLife` measure, is a maximal run of rounds with a malicious
    majority. :class:`~leadfl_pl.AttackerDetection` counts whom the rule did not select of the
    cohort.

    >>> row = {"round": 0, "round/malicious_sampled": 6, "val/clean_accuracy": 0.5}
    >>> summary([row], majority=5)["rounds with a malicious majority"]
    1

    Args:
        rows: one a round.
        majority: more malicious clients than this are one: half of the cohort.
    """
    clean, backdoor = (
        [row[key] for row in rows if isfinite(row.get(key, nan))]
        for key in ("val/clean_accuracy", "val/backdoor_accuracy")
    )
    numbers: dict[str, float] = {"main accuracy": clean[-1]} if clean else {}
    if backdoor:
        average = sum(backdoor) / len(backdoor)
        numbers |= {"backdoor average": average, "backdoor final": backdoor[-1]}
    numbers |= {
        "rounds with a malicious majority": sum(
            row["round/malicious_sampled"] > majority for row in rows
        ),
        "rejected updates": sum(row.get("round/rejected", 0.0) for row in rows),
        "failed clients": sum(row.get("round/failed", 0.0) for row in rows),
    }
    return numbers | _recovery(rows, majority) | _detection(rows, majority)


def _recovery(rows: Sequence[Row], majority: float) -> dict[str, float]:
    values = [row.get("val/backdoor_accuracy", nan) for row in rows]
    in_burst = [row["round/malicious_sampled"] > majority for row in rows]
    lives = lifespans(values, in_burst)
    numbers = {
        "backdoor lifespan": restricted_mean(lives),
        "recovery half-life": half_life(values, in_burst),
    }
    numbers = {name: value for name, value in numbers.items() if isfinite(value)}
    if "backdoor lifespan" in numbers:
        numbers["bursts"] = len(lives)
        numbers["censored bursts"] = sum(life.censored for life in lives)
    return numbers


def _detection(rows: Sequence[Row], majority: float) -> dict[str, float]:
    known = [row for row in rows if "round/malicious_selected" in row]
    attackers = sum(row["round/malicious_sampled"] for row in known)
    if not attackers:
        return {}
    chosen = sum(row["round/malicious_selected"] for row in known)
    numbers = {"attackers selected": chosen, "attackers sampled": attackers}
    if all("round/selected" in row for row in known):
        honest = 2 * majority * len(known) - attackers
        honest_chosen = sum(row["round/selected"] for row in known) - chosen
        rates = detection_rates(attackers, honest, attackers - chosen, honest - honest_chosen)
        numbers |= {n: r for n, r in zip(RATES, rates, strict=True) if isfinite(r)}
    return numbers


def shown_columns(
    summaries: Sequence[Mapping[str, float]], hidden: Sequence[str] = PARTS
) -> list[str]:
    """The columns of a table of :func:`summary`: what any has, and counts that are not all 0."""
    return [
        name
        for name in SUMMARY
        if name not in hidden
        and any(s.get(name, 0) > 0 if name in COUNTS else name in s for s in summaries)
    ]


def as_text(numbers: Mapping[str, float], columns: Sequence[str], rounds: int) -> list[str]:
    """:func:`summary` as a row of text: percentages, counts, rounds, and counts out of others."""

    def text(name: str) -> str:
        if name not in numbers:
            return ""
        value = numbers[name]
        if name in COUNTS:
            return f"{value:.0f}"
        if name.startswith("rounds"):
            return f"{value} of {rounds}"
        if name == "attackers selected":
            return f"{value:.0f} of {numbers['attackers sampled']:.0f}"
        if name == "backdoor lifespan" and (censored := numbers["censored bursts"]):
            return f"{value:.1f} ({censored} of {numbers['bursts']} censored)"
        if name in ("backdoor lifespan", "recovery half-life"):
            return f"{value:.1f}"
        return f"{100 * value:.1f} %"

    return [text(name) for name in columns]
