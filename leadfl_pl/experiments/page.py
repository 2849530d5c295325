"""One page about an experiment, without network: table, figures, runs with their commands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from leadfl_pl.experiments.jobs import FINISHED
from leadfl_pl.experiments.results import Results
from leadfl_pl.experiments.spec import NUMBERS
from leadfl_pl.experiments.tables import NOTHING, SHOWN, heading, shown_numbers

PROLOG = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", re.DOTALL)


def page(
    results: Results,
    table: pd.DataFrame,
    text: pd.DataFrame,
    figures: Sequence[tuple[str, str]],
    caption: str,
) -> str:
    """The page as HTML.

    Args:
        results: of an experiment.
        table: its numbers over seeds.
        text: the same as text, row by row.
        figures: the title and the SVG of each.
        caption: what the numbers of the table are.
    """
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    finished = int((results.runs["status"] == FINISHED).sum())
    commits = sorted({shorter(c) for c in results.runs["commit"].dropna()})
    return environment.get_template("report.html").render(
        name=results.name,
        axes=results.axes,
        headings=list(text.columns),
        rows=_rows(results, table, text),
        numbers=[heading(name) for name in NUMBERS if name in results.runs],
        figures=[(title, inline_svg(svg, i)) for i, (title, svg) in enumerate(figures)],
        caption=caption,
        notes=results.notes,
        counts=f"{finished} of {len(results.runs)} runs finished",
        commits=commits,
    )


def _rows(results: Results, table: pd.DataFrame, text: pd.DataFrame) -> list[dict[str, Any]]:
    """What the page has of each configuration: texts with values to sort by, and its runs."""
    columns = [column for column, _ in shown_numbers(table)]
    groups = results.runs.groupby(results.axes, sort=False)
    rows = []
    for numbers, texts, (labels, runs) in zip(
        table.to_dict("records"), text.to_dict("records"), groups, strict=True
    ):
        values = [numbers[column] for column in columns]
        shown = [_split(text) for text in list(texts.values())[len(results.axes) + 1 :]]
        sorted_by = ["" if pd.isna(value) else value for value in values]
        rows.append(
            {
                "labels": [str(label) for label in labels],
                "seeds": texts["seeds"],
                "finished": numbers["finished"],
                "cells": list(zip(columns, shown, sorted_by, strict=True)),
                "runs": [_run(run) for run in runs.to_dict("records")],
            }
        )
    return rows


def _split(shown: str) -> tuple[str, str]:
    """A number, and what stands behind it."""
    number, _, rest = shown.partition(" ")
    return (number, rest) if number[:1].isdigit() else (shown, "")


def _run(run: Mapping[Any, Any]) -> dict[str, Any]:
    numbers = []
    for name in [name for name in NUMBERS if name in run]:
        _, scale, digits = SHOWN[name]
        numbers.append(NOTHING if pd.isna(run[name]) else f"{scale * run[name]:.{digits}f}")
    error = run["error"] if isinstance(run["error"], str) else ""
    return {key: run[key] for key in ("seed", "status", "command")} | {
        "hash": run["hash"] if isinstance(run["hash"], str) else "",
        "error": error,
        "numbers": numbers,
    }


def shorter(commits: str) -> str:
    """A commit's first twelve digits, and what stands behind its last.

    >>> shorter("48e2e72c0ffee48e2e72c0ffee48e2e72c0ffee0+0badc0de")
    '48e2e72c0ffe+0badc0de'
    """
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{28}", r"\1", commits)


def inline_svg(svg: str, number: int) -> str:
    """A figure's SVG as part of a page: names of its own, the colors of the page's text and ground.

    >>> inline_svg('<?xml version="1.0"?><svg id="a"><path style="fill: #000000"/></svg>', 2)
    '<svg id="f2-a" aria-hidden="true"><path style="fill: currentColor"/></svg>'
    """
    svg = PROLOG.sub("", svg).strip()
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}f{number}-")
    svg = svg.replace("#000000", "currentColor").replace("#ffffff", "var(--ground)")
    return svg.replace(">", ' aria-hidden="true">', 1)
