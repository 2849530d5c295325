"""Figures from tables: a list of rows in, matplotlib Axes out. Reads no run by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, float]


def plot_accuracies(rows: Sequence[Row], majority: float, ax: Axes | None = None) -> Axes:
    """Clean and backdoor accuracy over the rounds, rounds with a malicious majority shaded.

    Args:
        rows: one for each round, with the keys ``round``, ``round/malicious_sampled``,
            ``val/clean_accuracy`` and, under a backdoor attack, ``val/backdoor_accuracy``.
        majority: rounds with more malicious clients than this are shaded: n / 2.
        ax: where to draw; a new figure if not given.
    """
    if ax is None:
        from matplotlib.figure import Figure  # no pyplot: no window, no global state

        ax = Figure(figsize=(7, 3.6), layout="constrained").add_subplot()
    label: str | None = "malicious majority"
    for row in rows:
        if row["round/malicious_sampled"] > majority:
            ax.axvspan(row["round"] - 0.5, row["round"] + 0.5, color="0.88", lw=0, label=label)
            label = None
    for key, color, name in (
        ("val/clean_accuracy", "tab:blue", "clean accuracy"),
        ("val/backdoor_accuracy", "tab:red", "backdoor accuracy"),
    ):
        points = [(row["round"], 100 * row[key]) for row in rows if key in row]
        if points:
            ax.plot(*zip(*points, strict=True), color=color, marker=".", label=name)
    ax.set(xlabel="round", ylabel="accuracy (%)", ylim=(-2, 102))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    ax.grid(alpha=0.3)
    return ax
