"""The numbers of docs/findings.md are those of the committed CSVs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT

from leadfl_pl.experiments.tables import SHOWN, as_text

TEXT = (ROOT / "docs/findings.md").read_text()
TABLE = re.compile(r"<!-- (results/\S+\.csv) -->\n\n((?:\|.*\n)+)")
NUMBER = re.compile(r"\d+\.\d+|\d+(?= %)")
SETTINGS = {"50 %", "95 %", "0.1", "0.4"}  # a threshold, the intervals, two alphas


@cache
def records(path: str) -> list[dict[str, Any]]:
    return pd.read_csv(ROOT / path).to_dict("records")


def rows() -> Iterator[tuple[str, dict[str, str]]]:
    """Every row of a table, by its columns, with the file that it is made of."""
    for path, table in TABLE.findall(TEXT):
        lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
        for cells in lines[2:]:
            yield path, dict(zip(lines[0], cells, strict=True))


def expected(name: str, record: dict[str, Any]) -> str:
    if f"{name} seeds" in record:
        return as_text(name, record)
    return f"{SHOWN[name].scale * record[name]:.1f}"  # of one run


@pytest.mark.parametrize(("path", "row"), rows())
def test_a_row_is_that_of_its_file(path: str, row: dict[str, str]) -> None:
    axes = {name: cell for name, cell in row.items() if name not in SHOWN}
    [record] = [r for r in records(path) if all(r[k] == v for k, v in axes.items())]
    numbers = {name: expected(name, record) for name in row if name in SHOWN}
    assert numbers
    assert row == axes | numbers


def test_every_number_of_the_text_is_one_of_a_table() -> None:
    prose = TABLE.sub("", TEXT)
    cells = [cell for _, row in rows() for name, cell in row.items() if name in SHOWN]
    known = set(NUMBER.findall(" ".join(cells)))
    said = set(NUMBER.findall(prose))
    assert said - known - {s.removesuffix(" %") for s in SETTINGS} == set()
    assert len(said & known) > 10


def test_every_table_names_its_file() -> None:
    assert len(TABLE.findall(TEXT)) == TEXT.count("|---|\n")


def test_what_is_said_of_the_catalogue_is_in_its_runs() -> None:
    text = (ROOT / "results/README.md").read_text()
    text = text[text.index("## `catalogue`") : text.index("## `splits`")]
    runs = pd.read_csv(ROOT / "results/catalogue/runs.csv").query("status == 'finished'")
    names = ["main accuracy", "backdoor average", "backdoor final"]
    means = 100 * runs.groupby(["rule", "defense"])[names].mean()
    of_seeds = 100 * runs.groupby(["seed", "defense"])[names].mean()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if " / " in line]
    for label, *cells in rows[1:]:
        for defense, cell in zip(("none", "LeadFL", "Contraction"), cells, strict=True):
            if cell != "-":
                seed = re.fullmatch(r"all, seed (\d)", label)
                found = of_seeds.loc[int(seed[1]), defense] if seed else means.loc[label, defense]
                assert cell == " / ".join(f"{number:.1f}" for number in found)
    assert len(rows) == 1 + runs["rule"].nunique() + runs["seed"].nunique()
    final = runs.dropna(subset="backdoor final").groupby(["seed", "defense"])["backdoor final"]
    little, much = final.agg(lambda x: (x < 0.1).sum()), final.agg(lambda x: (x > 0.5).sum())
    said = " ".join(text.split())
    assert f"{little[0, 'Contraction']} have less than 10 %" in said
    assert f"with seed 0, {little[1, 'Contraction']} with seed 1" in said
    assert f"without a defense {little[0, 'none']} and {little[1, 'none']}. The" in said
    assert f"{little[0, 'LeadFL']} pairs have less than 10 %" in said
    assert f"without a defense {much[0, 'none']} and {much[1, 'none']} of the 252" in said


def test_what_is_said_of_the_splits_is_in_their_table() -> None:
    text = (ROOT / "results/README.md").read_text()
    text = text[text.index("## `splits`") : text.index("## `server_momentum`")]
    names = ["main accuracy", "backdoor average", "backdoor final"]
    table = pd.read_csv(ROOT / "results/splits/table.csv").set_index(["rule", "split", "defense"])
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if " / " in line]
    for rule, split, *cells in rows[1:]:
        found = 100 * table.loc[(rule, split), names]
        assert list(found.index) == ["none", "LeadFL", "Contraction"]
        assert cells == [" / ".join(f"{x:.1f}" for x in row) for row in found.to_numpy()]
    assert len(rows) == 1 + len(table) / 3
