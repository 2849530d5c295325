"""Figures from tables: rows in, matplotlib figures out. Reads no run by itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from leadfl_pl.core.values import Row
from leadfl_pl.records.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = {
    "val/clean_accuracy": ("clean accuracy", "tab:blue"),
    "val/backdoor_accuracy": ("backdoor accuracy", "tab:red"),
}


def shade_majority(ax: Axes, rows: Sequence[Row], majority: float) -> None:
    """Shades the rounds with more than ``majority`` malicious clients."""
    label = "malicious majority"
    for row in rows:
        if row["round/malicious_sampled"] > majority:
            ax.axvspan(row["round"] - 0.5, row["round"] + 0.5, color="0.88", lw=0, label=label)
            label = "_"


def plot_series(ax: Axes, rows: Sequence[Row], key: str, label: str, color: str | None) -> None:
    """Draws one accuracy, in percent, over the rounds that have it."""
    points = [(row["round"], 100 * row[key]) for row in rows if key in row]
    if points:
        ax.plot(*zip(*points, strict=True), color=color, marker=".", label=label)


def finish_axes(ax: Axes, ylabel: str) -> None:
    """Rounds from left to right, percent from bottom to top."""
    from matplotlib.ticker import MaxNLocator

    ax.set(xlabel="round", ylabel=ylabel, ylim=(-2, 102))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path, kinds: Sequence[str] = ("png", "svg", "pdf")) -> None:
    """Writes the figure to ``path`` with the ending of each kind, each file whole."""
    import matplotlib as mpl

    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context({"svg.hashsalt": "leadfl_pl"}):  # the same figure is the same file
        for kind in kinds:
            data = io.BytesIO()
            figure.savefig(data, format=kind, dpi=150, metadata=dates.get(kind))
            write_whole(path.with_suffix(f".{kind}"), data.getbuffer())


def plot_accuracies(rows: Sequence[Row], majority: float, title: str = "") -> Figure:
    """Clean and backdoor accuracy over the rounds, rounds with a malicious majority shaded.

    Args:
        rows: one for each round, with the keys ``round``, ``round/malicious_sampled``,
            ``val/clean_accuracy`` and, under a backdoor attack, ``val/backdoor_accuracy``.
        majority: rounds with more malicious clients than this are shaded: n / 2.
        title: the name of the run.
    """
    figure = new_figure(7, 3.6)
    ax = figure.add_subplot()
    shade_majority(ax, rows, majority)
    for key, (label, color) in SERIES.items():
        plot_series(ax, rows, key, label, color)
    finish_axes(ax, "accuracy (%)")
    ax.set_title(title, parse_math=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def legend_grid(names: Sequence[str], width: float) -> tuple[int, int]:
    """Columns and lines of a legend of ``names`` and the bursts, below a figure of that width."""
    longest = max(map(len, names))
    columns = max(1, min(len(names) + 1, int((width - 0.8) / (0.7 + 0.08 * longest))))  # in inches
    return columns, -(-(len(names) + 1) // columns)


def plot_comparison(runs: Sequence[tuple[str, Sequence[Row]]], majority: float) -> Figure:
    """Clean accuracy of several runs on the left, backdoor accuracy on the right if any has it.

    Args:
        runs: the name of each run, and rows as in :func:`plot_accuracies`.
        majority: rounds with more malicious clients than this, in the first run, are shaded.
    """
    keys = [key for key in SERIES if any(key in row for _, rows in runs for row in rows)]
    keys = keys or ["val/clean_accuracy"]
    width = 4 + 3 * len(keys)
    columns, lines = legend_grid([name for name, _ in runs], width)
    figure = new_figure(width, 3.6 + 0.2 * lines)
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for ax, key in zip(panels, keys, strict=True):
        shade_majority(ax, runs[0][1], majority)
        for name, rows in runs:
            plot_series(ax, rows, key, name, None)
        finish_axes(ax, f"{SERIES[key][0]} (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def plot_label_shares(
    counts: Tensor, title: str = "", classes: Sequence[int] | None = None
) -> Figure:
    """Each client's shares of the classes on the left, its number of examples on the right.

    Args:
        counts: (K, C) examples of each class, see :func:`leadfl_pl.data.splits.label_counts`.
        title: the name of the run.
        classes: what the columns are, 0 .. C - 1 if not given.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    table = counts.double().cpu().numpy()
    clients, num_classes = table.shape
    sizes = table.sum(axis=1)
    colors = distinct_colors(num_classes)
    figure = new_figure(8, min(9.0, 1.6 + 0.24 * clients))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])

    ends = 100 * table.cumsum(axis=1) / sizes[:, None]
    starts = np.hstack([np.zeros((clients, 1)), ends[:, :-1]])
    half = 0.4 if clients <= 30 else 0.5  # no gaps where they would be finer than a pixel
    rows = np.broadcast_to(np.arange(clients)[:, None], ends.shape)
    corners = [
        (starts, rows - half),
        (ends, rows - half),
        (ends, rows + half),
        (starts, rows + half),
    ]
    boxes = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=2)[table > 0]
    fill = np.broadcast_to(colors, (clients, num_classes, 4))[table > 0]
    left.add_collection(
        PolyCollection(list(boxes), facecolors=fill, linewidths=0, antialiased=False)
    )
    left.set(xlim=(0, 100), xlabel="share of the client's examples (%)", ylabel="client")
    left.set_title(title, parse_math=False)
    left.set_ylim(clients - 0.5, -0.5)
    left.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(clients, 20)))

    if clients <= 30:
        right.barh(np.arange(clients), sizes, height=2 * half, color="0.6")
    else:  # one shape, not one for each client
        edges = np.arange(clients + 1) - 0.5
        right.stairs(sizes, edges, orientation="horizontal", fill=True, color="0.6")
    right.set(xlabel="examples")
    right.grid(axis="x", alpha=0.3)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    _class_legend(figure, colors, classes or range(num_classes))
    return figure


def distinct_colors(count: int) -> np.ndarray:
    """(count, 4): told apart by name up to 20, by place on a scale beyond that."""
    import matplotlib as mpl

    if count <= 20:
        return mpl.colormaps["tab10" if count <= 10 else "tab20"](np.arange(count))
    return mpl.colormaps["turbo"](np.linspace(0, 1, count))


def _class_legend(figure: Figure, colors: np.ndarray, names: Sequence[int]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.patches import Patch

    classes = len(colors)
    if classes <= 20:
        handles = [Patch(color=color, label=str(j)) for j, color in zip(names, colors, strict=True)]
        columns = min(classes, 10)
        figure.legend(
            handles=handles, title="class", loc="outside upper center", ncols=columns, frameon=False
        )
    else:
        scale = ScalarMappable(Normalize(-0.5, classes - 0.5), ListedColormap(colors))
        bar = figure.colorbar(
            scale, ax=figure.axes, label="class", location="top", aspect=50, shrink=0.6
        )
        named = {float(place): str(name) for place, name in enumerate(names)}
        bar.ax.xaxis.set_major_formatter(lambda place, _: named.get(place, ""))
