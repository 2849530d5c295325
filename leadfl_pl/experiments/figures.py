"""The figures of an experiment: accuracy over rounds, the front of two accuracies, heat maps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.experiments.fronts import plot_front
from leadfl_pl.experiments.leaderboard import BACKDOOR, MAIN
from leadfl_pl.experiments.over_seeds import estimate, lost_runs
from leadfl_pl.experiments.results import ACCURACIES, Results
from leadfl_pl.experiments.tables import NOTHING
from leadfl_pl.records.plots import distinct_colors, finish_axes, legend_grid, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

KINDS = ("rounds", "front", "heatmap")
MAX_LINES, MAX_FIGURES = 12, 6  # of rounds and fronts, where nobody says what to draw
BURSTS = "malicious majority"


def draw(
    results: Results, table: pd.DataFrame, kinds: Sequence[str] | None, interquartile: bool = False
) -> Iterator[tuple[str, str, Figure]]:
    """The figures, each with a file name and a title.

    ``rounds`` and ``front`` compare the values of the axis ``defense``, or of the first if none is
    called that, in a figure for each combination of the other axes. ``heatmap`` spans the two axes
    with most values, with a panel for each combination of the others.

    Args:
        results: of an experiment.
        table: its numbers over seeds.
        kinds: some of :data:`KINDS`; those that can be read if None.
        interquartile: the interquartile mean over seeds in place of the mean.

    Raises:
        ConfigError: there is no such kind, or there are no two axes for a heat map.
    """
    axis = "defense" if "defense" in results.axes else results.axes[0]
    others = [other for other in results.axes if other != axis]
    combinations = len(table.drop_duplicates(others)) if others else 1
    spread = [other for other in results.axes if table[other].nunique() > 1]
    if kinds is None:
        few = combinations <= MAX_FIGURES
        kinds = ["rounds"] * (few and table[axis].nunique() <= MAX_LINES)
        kinds += ["front"] * few + ["heatmap"] * (len(spread) > 1)
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"figures must be of {', '.join(KINDS)}, got {kind}")
        if kind == "heatmap" and len(spread) < 2:
            got = ", ".join(spread) or "none"
            raise ConfigError(f"figures: heatmap needs two axes of several values, got {got}")
    if "rounds" in kinds and results.rounds.reindex(columns=[*ACCURACIES]).notna().any(axis=None):
        for name, title, part in _parts(results.rounds, others):
            figure = plot_rounds(part, axis, list(table[axis].unique()), title, interquartile)
            yield f"rounds{name}", f"Accuracy over rounds{title and f', {title}'}", figure
    if "front" in kinds and table.get(BACKDOOR, pd.Series(dtype=float)).notna().sum() > 1:
        for name, title, part in _parts(table, others):
            heading = f"Main against backdoor accuracy{title and f', {title}'}"
            yield f"front{name}", heading, plot_front(part, axis, title)
    if "heatmap" in kinds:
        for number in (MAIN, BACKDOOR):
            if number in table and table[number].notna().any():
                name = f"heatmap-{number.partition(' ')[0]}"
                yield name, number.capitalize(), plot_heatmap(table, results.axes, number)


def _parts(frame: pd.DataFrame, others: Sequence[str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The end of a file name, a title, and the rows of each combination of the other axes."""
    if not others:
        yield "", "", frame
        return
    names: dict[str, int] = {}
    for labels, part in frame.groupby(list(others), sort=False):
        name = re.sub(r"[^\w.=+-]+", "_", "-".join(map(str, labels)), flags=re.ASCII)
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:  # labels that differ in other characters only
            name += f"_{names[name]}"
        pairs = zip(others, labels, strict=True)
        yield f"-{name}", ", ".join(f"{axis}: {label}" for axis, label in pairs), part


def plot_rounds(
    rounds: pd.DataFrame, axis: str, levels: Sequence[str], title: str, interquartile: bool = False
) -> Figure:
    """Main accuracy over the rounds on the left, backdoor accuracy on the right if there is any.

    A line is the mean over seeds, with its 95 % interval as a band, in the rounds that all seeds
    have. A round is shaded the more, the more of the runs have a malicious majority in it.

    Args:
        rounds: a row for each run and round.
        axis: the column that tells lines apart.
        levels: its values; each has the same color in all figures of an experiment.
        title: of the figure.
        interquartile: the interquartile mean in place of the mean.
    """
    names = [name for name in ACCURACIES if rounds[name].notna().any()]
    width = 4 + 3 * len(names)
    columns, lines = legend_grid(levels, width)
    figure = new_figure(width, 3.6 + 0.2 * lines)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(panels, names, strict=True):
        _shade_bursts(ax, rounds)
        for level, color in zip(levels, distinct_colors(len(levels)), strict=True):
            seeds = rounds[rounds[axis] == level].pivot(index="round", columns="seed", values=name)
            seeds = seeds.dropna()
            if seeds.empty:
                continue
            value, low, high = (100 * part for part in estimate(seeds.to_numpy().T, interquartile))
            marker = "." if len(seeds) <= 30 else None
            ax.plot(seeds.index, value, color=color, marker=marker, label=level)
            ax.fill_between(seeds.index, low, high, color=color, alpha=0.15, lw=0)
        finish_axes(ax, f"{name} (%)")
    if title:
        figure.suptitle(title, parse_math=False, fontsize="medium")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _shade_bursts(ax: Axes, rounds: pd.DataFrame) -> None:
    label = BURSTS
    shares = rounds.groupby("round")["burst"].mean()
    for t, share in zip(shares.index.to_numpy(), shares, strict=True):
        if share:
            ax.axvspan(t - 0.5, t + 0.5, color="0.5", alpha=0.25 * share, lw=0, label=label)
            label = "_"


def plot_heatmap(table: pd.DataFrame, axes: Sequence[str], number: str) -> Figure:
    """One accuracy by two axes, in percent; a configuration without it says why.

    A star says that some of its seeds failed or diverged.

    Args:
        table: numbers over seeds.
        axes: its axes: the two with most values become rows and columns, the others panels.
        number: the column to show, in [0, 1].
    """
    longest = sorted(axes, key=lambda axis: -table[axis].nunique())[:2]
    down, across = (axis for axis in axes if axis in longest)
    rows, columns = list(table[down].unique()), list(table[across].unique())
    parts = list(_parts(table, [axis for axis in axes if axis not in longest]))
    margins = 0.075 * max(map(len, rows)) + 0.5, 0.055 * max(map(len, columns)) + 0.8
    size = 0.46 * len(columns) + 0.3, 0.32 * len(rows) + margins[1]
    beside = max(1, min(len(parts), int((15 - margins[0]) / size[0])))
    below = -(-len(parts) // beside)
    figure = new_figure(max(4.5, margins[0] + beside * size[0] + 1), below * size[1])
    panels = list(figure.subplots(below, beside, sharey=True, squeeze=False).flat)
    for ax, (_, title, part) in zip(panels, parts, strict=False):
        image = _draw_panel(ax, part, down, across, rows, columns, number)
        ax.set_title(title, parse_math=False, fontsize="medium")
    for ax in panels[len(parts) :]:
        ax.remove()
    figure.supylabel(down, fontsize="medium")
    figure.supxlabel(across, fontsize="medium")
    figure.colorbar(image, ax=figure.axes, label=f"{number} (%)", shrink=0.8, aspect=25 * below)
    return figure


def _draw_panel(
    ax: Axes, part: pd.DataFrame, down: str, across: str, rows: list[str], columns: list[str],
    number: str,
) -> AxesImage:  # fmt: skip
    values = np.full((len(rows), len(columns)), np.nan)
    for entry in part.to_dict("records"):
        i, j = rows.index(entry[down]), columns.index(entry[across])
        values[i, j] = 100 * entry[number]
        star = "*" * lost_runs(entry["states"])
        text, color = f"{values[i, j]:.0f}{star}", "#fefefe" if values[i, j] < 60 else "#010101"
        if np.isnan(values[i, j]):
            state = entry["states"].split()[1].rstrip(",")
            text, color = NOTHING if entry["finished"] else state, "#000000"
        size = 6 if len(text) > 3 else "x-small"
        ax.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    image = ax.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0, labelsize="small")
    ax.spines[:].set_visible(False)
    return image
