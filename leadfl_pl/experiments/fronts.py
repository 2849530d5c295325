"""The front of main against backdoor accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from leadfl_pl.experiments.leaderboard import BACKDOOR, MAIN
from leadfl_pl.records.plots import distinct_colors, legend_grid, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_front(table: pd.DataFrame, axis: str, title: str) -> Figure:
    """A point for each configuration with its intervals; best is at the lower right.

    A line leads through the points of one :func:`series_of`. A configuration is on the front, the
    grey line, if no other is better in one accuracy and no worse in the other.
    """
    points = table[table[BACKDOOR].notna() & table[MAIN].notna()]
    names = list(dict.fromkeys(series_of(label)[0] for label in table[axis]))
    width = 7 if len(points) <= 20 else 10
    columns, lines = legend_grid(names, width)
    figure = new_figure(width, 0.65 * width + 0.2 * lines)
    ax = figure.add_subplot()
    for i, (name, color) in enumerate(zip(names, distinct_colors(len(names)), strict=True)):
        part = points[[series_of(label)[0] == name for label in points[axis]]]
        if len(part):
            style = {"color": color, "marker": "osD^v"[i % 5], "label": name}
            _plot_series(ax, part, [series_of(label)[1] for label in part[axis]], style)
    corners = 100 * pareto_front(points)[[MAIN, BACKDOOR]].to_numpy().T
    ax.step(*corners, where="pre", color="0.5", lw=1.5, zorder=0, label="front")
    ax.margins(0.08)
    ax.set(xlabel=f"{MAIN} (%)", ylabel=f"{BACKDOOR} (%)")
    ax.grid(alpha=0.3)
    ax.set_title(title, parse_math=False, fontsize="medium")
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _plot_series(ax: Axes, part: pd.DataFrame, texts: Sequence[str], style: dict[str, Any]) -> None:
    places = 100 * part[[MAIN, BACKDOOR]].to_numpy()
    ends = 100 * part[[f"{n} {e}" for n in (MAIN, BACKDOOR) for e in ("low", "high")]].to_numpy()
    color = style["color"]
    ax.plot(*places.T, ms=5, lw=1, ls=":", **style)
    for (x, y), (left, right, bottom, top), text in zip(places, ends, texts, strict=True):
        ax.plot([left, right], [y, y], color=color, lw=1, alpha=0.5)
        ax.plot([x, x], [bottom, top], color=color, lw=1, alpha=0.5)
        ax.annotate(
            text, (x, y), (4, 4), textcoords="offset points", color=color, fontsize="x-small"
        )


def series_of(label: str) -> tuple[str, str]:
    """The series that a label is of, and its value there: the last setting that it names.

    >>> series_of("LeadFL, norm=l2, alpha=0.4"), series_of("none")
    (('LeadFL, norm=l2 (alpha)', '0.4'), ('none', ''))
    """
    start, _, setting = label.rpartition(", ")
    key, equals, value = setting.partition("=")
    return (f"{start} ({key})" if start else key, value) if equals else (label, "")


def pareto_front(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other row beats, by main accuracy.

    >>> table = pd.DataFrame({MAIN: [0.9, 0.8, 0.7], BACKDOOR: [0.5, 0.6, 0.1]})
    >>> list(pareto_front(table).index)
    [2, 0]
    """
    ordered = table.sort_values([MAIN, BACKDOOR], ascending=[False, True])
    lowest = ordered[BACKDOOR].cummin().shift(fill_value=np.inf)
    front: pd.DataFrame = ordered[ordered[BACKDOOR] < lowest].iloc[::-1]
    return front
