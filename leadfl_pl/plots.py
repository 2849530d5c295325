"""Figures from tables: rows in, matplotlib figures out. Reads no run by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from leadfl_pl.types import Row

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


def _finish(ax: Axes, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set(xlabel="round", ylabel=ylabel, ylim=(-2, 102))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def plot_accuracies(rows: Sequence[Row], majority: float) -> Figure:
    """Clean and backdoor accuracy over the rounds, rounds with a malicious majority shaded.

    Args:
        rows: one for each round, with the keys ``round``, ``round/malicious_sampled``,
            ``val/clean_accuracy`` and, under a backdoor attack, ``val/backdoor_accuracy``.
        majority: rounds with more malicious clients than this are shaded: n / 2.
    """
    figure = _figure(7, 3.6)
    ax = figure.add_subplot()
    shade_majority(ax, rows, majority)
    for key, (label, color) in SERIES.items():
        plot_series(ax, rows, key, label, color)
    _finish(ax, "accuracy (%)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def plot_comparison(runs: Mapping[str, Sequence[Row]], majority: float) -> Figure:
    """Clean accuracy of several runs on the left, backdoor accuracy on the right.

    Args:
        runs: rows as in :func:`plot_accuracies`, by the name of the run.
        majority: rounds with more malicious clients than this, in the first run, are shaded.
    """
    figure = _figure(10, 3.8)
    for ax, (key, (label, _)) in zip(
        figure.subplots(1, 2, sharey=True), SERIES.items(), strict=True
    ):
        shade_majority(ax, next(iter(runs.values())), majority)
        for name, rows in runs.items():
            plot_series(ax, rows, key, name, None)
        _finish(ax, f"{label} (%)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
