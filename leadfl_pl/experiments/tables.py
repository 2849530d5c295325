"""The table of an experiment for readers: CSV with all digits, Markdown and LaTeX with few."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table
from rich.text import Text

from leadfl_pl.experiments.spec import FRACTIONS, NUMBERS

NOTHING = "-"  # in place of a number


class Shown(NamedTuple):
    """How a number is shown."""

    unit: str
    scale: float = 1
    digits: int = 1


SHOWN = {
    **dict.fromkeys(FRACTIONS, Shown("%", 100)),
    "backdoor lifespan": Shown("rounds"),
    "recovery half-life": Shown("rounds"),
    "attackers selected": Shown(""),
    "seconds a round": Shown("", digits=2),
    "peak memory": Shown("MB", digits=0),
}


def heading(name: str, ending: str = "") -> str:
    """The name of a number with its unit.

    >>> heading("main accuracy"), heading("main accuracy", ", published")
    ('main accuracy (%)', 'main accuracy, published (%)')
    """
    unit = SHOWN[name].unit
    return f"{name}{ending} ({unit})" if unit else f"{name}{ending}"


def as_text(name: str, row: Mapping[Any, Any]) -> str:
    """A number of a configuration: its estimate, interval and whatever it does not cover.

    >>> row = {"main accuracy": 0.8, "main accuracy low": 0.75, "main accuracy high": 0.84}
    >>> as_text("main accuracy", row | {"main accuracy seeds": 2, "finished": 3})
    '80.0 [75.0, 84.0] (2 of 3 seeds)'
    """
    if not row["finished"]:
        return re.sub(r"\d+ ", "", row["states"])
    if not row.get(f"{name} seeds", 0) > 0:  # NaN where no configuration has it
        return NOTHING
    _, scale, digits = SHOWN[name]

    def text(column: str) -> str:
        return f"{scale * row[column]:.{digits}f}"

    parts = [text(name)]
    if row[f"{name} seeds"] > 1:
        parts.append(f"[{text(f'{name} low')}, {text(f'{name} high')}]")
    if name == "attackers selected":
        parts.append(f"of {round(row['attackers sampled'], 1):g}")
    if name == "backdoor lifespan" and row["censored bursts"]:
        parts.append(f"({row['censored bursts']:.0f} of {row['bursts']:.0f} censored)")
    if row[f"{name} seeds"] < row["finished"]:
        parts.append(f"({row[f'{name} seeds']:.0f} of {row['finished']} seeds)")
    return " ".join(parts)


def shown_numbers(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The columns of numbers that a reader sees: each with its heading, published ones included."""
    shown = []
    for name in NUMBERS:
        if name in table and table[name].notna().any():
            shown.append((name, heading(name)))
        if f"{name} published" in table:
            shown.append((f"{name} published", heading(name, ", published")))
    return shown


def text_table(table: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The table as text, a row for each configuration.

    Args:
        table: see :func:`~leadfl_pl.experiments.over_seeds.over_seeds`.
        axes: names of its first columns.
    """
    rows = []
    for row in table.to_dict("records"):
        seeds = f"{row['seeds']}"
        if row["finished"] < row["seeds"]:
            seeds = f"{row['finished']} of {seeds}: {row['states']}"
        texts = {axis: row[axis] for axis in axes} | {"seeds": seeds}
        for column, head in shown_numbers(table):
            name = column.removesuffix(" published")
            if name == column:
                texts[head] = as_text(name, row)
            else:
                _, scale, digits = SHOWN[name]
                known = pd.notna(row[column])
                texts[head] = f"{scale * row[column]:.{digits}f}" if known else NOTHING
        rows.append(texts)
    shown: pd.DataFrame = pd.DataFrame(rows)
    return shown


def caption(interquartile: bool, sources: Sequence[str]) -> str:
    """What the numbers of a table are."""
    statistic = "interquartile mean" if interquartile else "mean"
    published = f" Published: {'; '.join(sources)}." if sources else ""
    return (
        f"The {statistic} over seeds, [its 95 % bootstrap interval]; a number without an interval "
        f"is of one seed. Backdoor lifespan and half-life are in rounds after a burst.{published}"
    )


def for_terminal(text: pd.DataFrame, axes: Sequence[str]) -> Table:
    """What fits a terminal of the table of :func:`text_table`: the accuracies."""
    names = [name for name in NUMBERS if SHOWN[name].unit == "%" and heading(name) in text]
    accuracies = list(map(heading, names))
    table = Table()
    for axis in axes:
        table.add_column(axis, overflow="fold", min_width=6)
    for column in accuracies:  # "main", below it "accuracy (%)"
        table.add_column(column.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row in text[[*axes, *accuracies]].itertuples(index=False):
        if len(axes) > 2:  # there is no room for intervals beside their numbers
            row = [cell.replace(" [", "\n[") for cell in row]
        table.add_row(*map(Text, row))
    return table


def as_markdown(text: pd.DataFrame, axes: Sequence[str], notes: Sequence[str]) -> str:
    """The table of :func:`text_table` in Markdown, notes below it."""
    align = ["left"] * (len(axes) + 1) + ["right"] * (len(text.columns) - len(axes) - 1)
    escaped = text.replace(r"\|", r"\\|", regex=True)
    lines = escaped.to_markdown(index=False, disable_numparse=True, colalign=align)
    return "\n".join([lines, "", *(f"{note}\n" for note in notes)])


def as_latex(text: pd.DataFrame, axes: Sequence[str]) -> str:
    """The table of :func:`text_table` for LaTeX with the package booktabs."""
    columns = "l" * (len(axes) + 1) + "r" * (len(text.columns) - len(axes) - 1)
    return str(text.to_latex(index=False, escape=True, column_format=columns))
