"""Fills the tables of README.md, findings.md and results/README.md from the CSV above each.

``python docs/fill_tables.py``. To add a row, write the cells of its axes and ``x`` for each number.
The table of processors and commits in results/README.md is made of every ``run.json``.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from leadfl_pl.experiments.tables import NOTHING, SHOWN, as_text

ROOT = Path(__file__).parent.parent
README, FINDINGS, RESULTS = (
    ROOT / name for name in ("README.md", "docs/findings.md", "results/README.md")
)
TABLE = re.compile(r"<!-- (?P<path>results/\S+\.csv) -->\n\n(?P<rows>(?:\|.*\n)+)")
ORIGINS = re.compile(r"<!-- origins -->\n\n(?:\|.*\n)+")
NUMBER = re.compile(rf"(?P<name>{'|'.join(SHOWN)})(?P<published>, published)?")


def cells(line: str) -> list[str]:
    return line.strip("| \n").split(" | ")


def number(head: str, record: dict[str, Any]) -> str:
    """A cell of the configuration ``record``: its estimate, with an interval if it has seeds."""
    name, published = NUMBER.fullmatch(head).group("name", "published")
    if f"{name} seeds" in record and not published:
        return as_text(name, record)
    value = record[f"{name} published" if published else name]  # the latter of one run
    _, scale, digits = SHOWN[name]
    return f"{scale * value:.{digits}f}" if pd.notna(value) else NOTHING


def refilled(table: re.Match[str]) -> str:
    """The table with each number replaced by that of its row in the file."""
    head, rule, *rows = table["rows"].splitlines()
    records = pd.read_csv(ROOT / table["path"]).to_dict("records")
    lines = [head, rule]
    for row in rows:
        old = dict(zip(cells(head), cells(row), strict=True))
        axes = {name: cell for name, cell in old.items() if not NUMBER.fullmatch(name)}
        found = [r for r in records if all(r[name] == cell for name, cell in axes.items())]
        if len(found) != 1:
            raise SystemExit(
                f"{table['path']} has {len(found)} rows of {axes}, where one is needed"
            )
        [record] = found
        new = [axes[name] if name in axes else number(name, record) for name in old]
        lines.append(f"| {' | '.join(new)} |")
    return f"<!-- {table['path']} -->\n\n" + "\n".join(lines) + "\n"


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """The ``run.json`` of all runs in a folder, packed ones included."""
    for path in folder.rglob("run.json"):
        yield json.loads(path.read_text())
    for archive in folder.rglob("*.tar.xz"):
        with tarfile.open(archive) as tar:
            members = [tar.extractfile(m) for m in tar if m.name.endswith("run.json")]
            yield from (json.load(member) for member in members if member)


def counted(values: Iterable[str]) -> str:
    """The different values, with how often each occurs if there are several."""
    counts = sorted(Counter(values).items())
    return ", ".join(f"{value} ({n})" if len(counts) > 1 else value for value, n in counts)


def origins() -> str:
    """Which processors and commits the committed runs are of."""
    lines = ["| results | runs | processor | commit |", "|---|---|---|---|"]
    for folder in sorted((ROOT / "results").iterdir()):
        if runs := list(records(folder)):
            processors = counted(r.get("processor", "not recorded") for r in runs)
            commits = counted(re.sub(r"(?<=^.{7})[0-9a-f]+", "", r["commit"]) for r in runs)
            lines.append(f"| {folder.name} | {len(runs)} | {processors} | {commits} |")
    return "<!-- origins -->\n\n" + "\n".join(lines).replace("(R)", "") + "\n"


if __name__ == "__main__":
    for page in (README, FINDINGS, RESULTS):
        page.write_text(ORIGINS.sub(lambda _: origins(), TABLE.sub(refilled, page.read_text())))
