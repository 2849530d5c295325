"""The record of a run: one row a round in ``rounds.csv``, its provenance in ``run.json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from leadfl_pl.core.values import Row
from leadfl_pl.records.files import write_whole

ROUNDS, FACTS, FIGURE, SPLIT = "rounds.csv", "run.json", "accuracy.png", "split.png"


class Run(NamedTuple):
    """A run as it lies in its folder."""

    folder: Path
    rows: list[dict[str, float]]
    facts: dict[str, Any]

    @property
    def majority(self) -> float:
        """More malicious clients in a round than this are a majority."""
        return float(self.facts["clients_per_round"]) / 2


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Writes ``rounds.csv``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, keys)
    writer.writeheader()
    writer.writerows({**row, "round": int(row["round"])} for row in rows)
    write_whole(folder / ROUNDS, text.getvalue().encode())


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes ``run.json``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FACTS, (json.dumps(dict(facts), indent=2) + "\n").encode())


def read_run(folder: Path) -> Run:
    """Reads the record in ``folder``, or in the newest ``logs/version_*`` under it.

    Raises:
        FileNotFoundError: there is none.
    """
    versions = sorted(folder.glob("logs/version_*"), key=lambda p: int(p.name.split("_")[-1]))
    found = next((p for p in [folder, *reversed(versions)] if (p / ROUNDS).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no {ROUNDS} in {folder} or in its logs/version_*")
    with (found / ROUNDS).open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return Run(found, rows, json.loads((found / FACTS).read_text()))


def summary(rows: Sequence[Row], majority: float) -> dict[str, float]:
    """The numbers of a run: accuracies in [0, 1], NaN where there is no backdoor.

    >>> row = {"round": 0, "round/malicious_sampled": 6, "val/clean_accuracy": 0.5}
    >>> summary([row], majority=5)["rounds with a malicious majority"]
    1
    """
    nan = float("nan")
    clean = [row["val/clean_accuracy"] for row in rows if "val/clean_accuracy" in row]
    backdoor = [row["val/backdoor_accuracy"] for row in rows if "val/backdoor_accuracy" in row]
    return {
        "main accuracy": clean[-1] if clean else nan,
        "backdoor average": sum(backdoor) / len(backdoor) if backdoor else nan,
        "backdoor final": backdoor[-1] if backdoor else nan,
        "rounds with a malicious majority": sum(
            row["round/malicious_sampled"] > majority for row in rows
        ),
    }


def cells(numbers: Mapping[str, float], rounds: int) -> list[str]:
    """:func:`summary` as text: percentages, and a count out of ``rounds``."""
    return [
        f"{value:.0f} of {rounds}" if name.startswith("rounds") else f"{100 * value:.1f} %"
        for name, value in numbers.items()
    ]
