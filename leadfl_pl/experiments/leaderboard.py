"""The best setting of each method, if main accuracy may fall by so much."""

from __future__ import annotations

import pandas as pd

from leadfl_pl.experiments.over_seeds import lost_runs
from leadfl_pl.experiments.tables import NOTHING, as_text, heading

MAIN, BACKDOOR = "main accuracy", "backdoor average"
SHOWN = (MAIN, BACKDOOR, "backdoor final", "backdoor lifespan")
COST = 0.03  # of main accuracy


def best_settings(table: pd.DataFrame, axis: str, cost: float = COST) -> dict[str, str | None]:
    """For each method the setting with the lowest backdoor average that costs little, None if none.

    A label is a method with its settings behind commas. The methods come in order of that average;
    those without such a setting come last. A setting that lost a seed is none.

    >>> table = pd.DataFrame({
    ...     "defense": ["none", "LDP, scale=1", "LDP, scale=2", "SAM"],
    ...     MAIN: [0.9, 0.88, 0.8, 0.7],
    ...     BACKDOOR: [0.8, 0.6, 0.1, 0.2],
    ...     "states": "2 finished",
    ... })
    >>> best_settings(table, "defense")
    {'LDP': 'LDP, scale=1', 'none': 'none', 'SAM': None}

    Args:
        table: see :func:`~leadfl_pl.experiments.over_seeds.over_seeds`; its first row is what the
            others are compared with.
        axis: the column of the labels.
        cost: how much lower main accuracy may be than in the first row.
    """
    whole = ~table["states"].map(lost_runs)
    cheap = table[MAIN] >= table[MAIN].iloc[0] - cost
    affordable = table[whole & cheap].sort_values(BACKDOOR)
    best: dict[str, str | None] = {}
    for label in affordable[axis]:
        best.setdefault(label.partition(", ")[0], label)
    return best | {m: None for m in table[axis].str.partition(", ")[0] if m not in best}


def leaderboard(table: pd.DataFrame, axis: str) -> str:
    """:func:`best_settings` in Markdown, with what they achieve."""
    rows = []
    for method, label in best_settings(table, axis).items():
        row = table[table[axis] == label].to_dict("records") if label else []
        setting = label.removeprefix(method).strip(", ") if label else "none within the cost"
        numbers = [as_text(name, row[0]) if row else NOTHING for name in SHOWN]
        rows.append([method, setting, *numbers])
    columns = [axis, "setting", *map(heading, SHOWN)]
    frame = pd.DataFrame(rows, columns=columns)
    align = ["left", "left", *["right"] * len(SHOWN)]
    return f"{frame.to_markdown(index=False, disable_numparse=True, colalign=align)}\n"
