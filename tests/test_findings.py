"""The numbers of README.md, findings.md and results/README.md are those of the committed CSVs."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from fill_tables import (
    FINDINGS,
    NUMBER,
    ORIGINS,
    README,
    RESULTS,
    TABLE,
    cells,
    origins,
    refilled,
)

TEXT, RESULTS_TEXT = FINDINGS.read_text(), RESULTS.read_text()
FIGURES = re.compile(r"\d+\.\d+|\d+(?= %)")
SETTINGS = {"50 %", "95 %", "0.1", "0.4"}  # a threshold, the intervals, two alphas


@pytest.mark.parametrize(
    "table",
    TABLE.finditer(README.read_text() + TEXT + RESULTS_TEXT),
    ids=lambda table: table["path"],
)
def test_a_table_is_that_of_its_file(table: re.Match[str]) -> None:
    assert table[0] == refilled(table), "python docs/fill_tables.py fills it again"


def test_the_table_of_processors_and_commits_is_that_of_all_runs() -> None:
    (table,) = ORIGINS.findall(RESULTS_TEXT)
    assert table == origins(), "python docs/fill_tables.py fills it again"


def test_a_missing_or_wrong_number_is_filled_in() -> None:
    spoilt, count = re.subn(r"\| (\d+\.\d) \| \d+\.\d \|", r"| x | \g<1>9 |", TEXT)
    assert count > 10
    assert TABLE.sub(refilled, spoilt) == TEXT


def test_a_published_number_is_that_of_the_report() -> None:
    column = r"(?<=\| LeadFL \| )(\d+\.\d) \| 87\.9 \|"
    spoilt, count = re.subn(column, r"\1 | x |", RESULTS_TEXT)
    assert count > 0
    assert TABLE.sub(refilled, spoilt) == RESULTS_TEXT


def test_every_number_of_the_text_is_one_of_a_table() -> None:
    known = set()
    for table in TABLE.finditer(TEXT):
        head, _, *rows = map(cells, table["rows"].splitlines())
        for row in rows:
            named = zip(head, row, strict=True)
            numbers = [cell for name, cell in named if NUMBER.fullmatch(name)]
            known |= set(FIGURES.findall(" ".join(numbers)))
    said = set(FIGURES.findall(TABLE.sub("", TEXT)))
    assert said - known - {s.removesuffix(" %") for s in SETTINGS} == set()
    assert len(said & known) > 10


def test_every_table_names_its_file() -> None:
    assert len(TABLE.findall(TEXT)) == TEXT.count("|---|\n")


def section(name: str) -> str:
    """Of results/README.md."""
    return RESULTS_TEXT.split(f"\n## `{name}`")[1].split("\n## ")[0]


def test_what_is_said_of_the_catalogue_is_in_its_runs() -> None:
    text = section("catalogue")
    runs = pd.read_csv(ROOT / "results/catalogue/runs.csv").query("status == 'finished'")
    names = ["main accuracy", "backdoor average", "backdoor final"]
    means = 100 * runs.groupby(["rule", "defense"])[names].mean()
    of_seeds = 100 * runs.groupby(["seed", "defense"])[names].mean()
    rows = [cells(line) for line in text.splitlines() if " / " in line]
    defenses = ["none", "LeadFL", "Contraction"]
    for label, *numbers in rows[1:]:
        seed = re.fullmatch(r"all, seed (\d)", label)
        found = of_seeds.loc[int(seed[1])] if seed else means.loc[label]
        assert numbers == [
            " / ".join(f"{x:.1f}" for x in row) for row in found.loc[defenses].to_numpy()
        ]
    assert len(rows) == 1 + runs["rule"].nunique() + runs["seed"].nunique()
    rounds = pd.read_csv(ROOT / "results/catalogue/rounds.csv").query("burst")
    during = 100 * rounds.groupby("defense")["backdoor accuracy"].mean()[defenses]
    said = re.search(r"at ([\d.]+) % .*LeadFL and", text)[0]
    assert re.findall(r"[\d.]+(?= %)", said) == [f"{x:.1f}" for x in during[:2]]
    assert f"and {during['Contraction']:.1f} % under Contraction" in text
    final = runs.dropna(subset="backdoor final").groupby(["seed", "defense"])["backdoor final"]
    little, much = final.agg(lambda x: (x < 0.1).sum()), final.agg(lambda x: (x > 0.5).sum())
    left = [cells(line) for line in text.splitlines() if re.match(r"\| \d \|", line)]
    for seed, *numbers in left:
        assert numbers == [f"{little[int(seed), d]}, {much[int(seed), d]}" for d in defenses]
    assert len(left) == runs["seed"].nunique()


def test_what_is_said_of_5_and_10_epochs_is_in_their_runs() -> None:
    lines = section("table1_seeds").splitlines()
    rows = [cells(line) for line in lines if line.startswith("| ") and " / " in line]
    for defense, *numbers in rows:
        found = []
        for name in ("table1", "table1_seeds"):
            labels = {"rule": "Multi-Krum", "defense": defense}
            (path,) = [
                path
                for path in (ROOT / "results" / name).glob("*/cell.json")
                if (cell := json.loads(path.read_text()))["labels"] == labels and cell["seed"] == 0
            ]
            rounds = 100 * pd.read_csv(path.parent / "rounds.csv")[:20]
            clean, backdoor = rounds["val/clean_accuracy"], rounds["val/backdoor_accuracy"]
            found.append((clean.iloc[-1], backdoor.mean(), backdoor.iloc[-1]))
        assert numbers == [" / ".join(f"{x:.1f}" for x in row) for row in found]
    assert len(rows) == 6


def test_what_is_said_of_the_splits_is_in_their_table() -> None:
    text = section("splits")
    names = ["main accuracy", "backdoor average", "backdoor final"]
    table = pd.read_csv(ROOT / "results/splits/table.csv").set_index(["rule", "split", "defense"])
    rows = [cells(line) for line in text.splitlines() if " / " in line]
    for rule, split, *numbers in rows[1:]:
        found = 100 * table.loc[(rule, split), names]
        assert list(found.index) == ["none", "LeadFL", "Contraction"]
        assert numbers == [" / ".join(f"{x:.1f}" for x in row) for row in found.to_numpy()]
    assert len(rows) == 1 + len(table) / 3


@pytest.mark.parametrize("name", ["attack_effect", "attack_effect_fashionmnist"])
def test_what_is_said_of_the_attack_effect_is_in_its_runs(name: str) -> None:
    runs: dict[str, list[pd.DataFrame]] = {}
    for path in (ROOT / "results" / name).glob("*/cell.json"):
        defense = json.loads(path.read_text())["labels"]["defense"]
        runs.setdefault(defense, []).append(pd.read_csv(path.parent / "rounds.csv"))
    _, *rows = [cells(line) for line in section(name).splitlines() if " → " in line]
    for defense, *numbers in rows:
        after = pd.concat(runs[defense]).groupby("round").mean(numeric_only=True).loc[[1, 9]]
        relative, backdoor = after["attack_effect/relative"], 100 * after["val/backdoor_accuracy"]
        rhos = [np.exp(np.log(r["attack_effect/contraction"]).mean()) for r in runs[defense]]
        rho = np.mean(rhos)
        assert numbers == [
            f"{rho:.3f} [{min(rhos):.3f}, {max(rhos):.3f}]",
            f"{-1 / np.log2(rho):.1f}" if rho < 1 else "none",
            " → ".join(f"{x:.2f}" for x in relative),
            " → ".join(f"{x:.1f}" for x in backdoor),
        ]
    assert {row[0] for row in rows} == set(runs)


@pytest.mark.parametrize(
    ("name", "attackers"),
    [("update_distances", [6]), ("update_distances_fashionmnist", [1, 2, 3, 4])],
)
def test_what_is_said_of_the_distances_is_in_their_runs(name: str, attackers: list[int]) -> None:
    text = section("update_distances")
    table = text[text.index(f"<!-- {name} -->") :].split("\n\n")[1]
    rounds = pd.concat(
        pd.read_csv(path.parent / "rounds.csv").assign(
            defense=json.loads(path.read_text())["labels"]["defense"]
        )
        for path in (ROOT / "results" / name).glob("*/cell.json")
    )
    rounds = rounds[rounds["round/malicious_sampled"].isin(attackers)]
    means = rounds.groupby("defense")[
        [f"updates/distance/{pair}" for pair in ("honest", "malicious", "between")]
        + ["round/malicious_selected", "round/malicious_sampled"]
    ].mean()
    rows = [cells(line) for line in table.splitlines()[2:]]
    for defense, *numbers in rows:
        *distances, selected, of = means.loc[defense]
        expected = [f"{x:.2f}" for x in distances] + [f"{selected:.1f} of {of:.1f}"]
        assert numbers == expected
    assert {row[0] for row in rows} == set(means.index)
