"""Numbers over seeds, with intervals, beside published ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, trim_mean

from leadfl_pl.core.errors import LARGEST, ConfigError, require_number
from leadfl_pl.experiments.jobs import FAILED, FINISHED
from leadfl_pl.experiments.results import DIVERGED, Results
from leadfl_pl.experiments.spec import FRACTIONS, NUMBERS


class Estimate(NamedTuple):
    """A number over seeds, and the ends of its 95 % interval: NaN for one seed."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean without the lowest and the highest quarter, rounded down: the mean of up to three.

    >>> float(interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0, 94.0])))
    2.0
    """
    return np.asarray(trim_mean(values, 0.25, axis=axis))


def estimate(values: np.ndarray, interquartile: bool = False) -> Estimate:
    """The mean over seeds with its percentile bootstrap interval, the same for the same values.

    >>> [round(float(number), 2) for number in estimate(np.array([0.1, 0.2, 0.3, 0.4, 0.5]))]
    [0.3, 0.18, 0.42]

    Args:
        values: (n,) or (n, T), a row for each of n seeds.
        interquartile: :func:`interquartile_mean` in place of the mean.
    """
    statistic = interquartile_mean if interquartile else np.mean
    value = np.asarray(statistic(values, axis=0))
    if len(values) == 1:
        return Estimate(value, np.full_like(value, nan), np.full_like(value, nan))
    low, high = bootstrap(
        (values,), statistic, axis=0, method="percentile", batch=1000, rng=np.random.default_rng(0)
    ).confidence_interval
    return Estimate(value, np.asarray(low), np.asarray(high))


def over_seeds(results: Results, interquartile: bool = False) -> pd.DataFrame:
    """A row for each configuration without its seed, also where no run came to its end.

    Columns: the axes; ``seeds`` that there should be; ``finished``; ``states``, how many runs are
    in each; of every number its estimate, ``NAME low``, ``NAME high`` and ``NAME seeds``, those
    that have it; ``bursts`` and ``censored bursts`` of all seeds; ``attackers sampled``, the mean.
    """
    names = [name for name in NUMBERS if name in results.runs]
    rows = []
    for labels, group in results.runs.groupby(results.axes, sort=False):
        done = group[group["status"] == FINISHED]
        states = Counter(group["status"])
        row: dict[str, Any] = dict(zip(results.axes, labels, strict=True))
        row |= {"seeds": len(group), "finished": len(done)}
        row["states"] = ", ".join(f"{count} {state}" for state, count in states.items())
        known = done[names].notna()
        whole = [name for name in names if len(done) and known[name].all()]
        batches = [whole] * bool(whole) + [[n] for n in names if n not in whole and known[n].any()]
        for batch in batches:  # one bootstrap for all that every seed has
            numbers = estimate(done[batch].dropna().to_numpy(float), interquartile)
            for j, name in enumerate(batch):
                row |= {name: float(numbers.value[j]), f"{name} low": float(numbers.low[j])}
                row |= {f"{name} high": float(numbers.high[j]), f"{name} seeds": known[name].sum()}
        row |= {part: done[part].sum() for part in ("bursts", "censored bursts") if part in done}
        if "attackers sampled" in done:
            row["attackers sampled"] = done["attackers sampled"].mean()
        rows.append(row)
    parts = [f"{name}{end}" for name in names for end in ("", " low", " high", " seeds")]
    extra = [p for p in ("bursts", "censored bursts", "attackers sampled") if p in results.runs]
    columns = [*results.axes, "seeds", "finished", "states", *parts, *extra]
    table: pd.DataFrame = pd.DataFrame(rows).reindex(columns=columns)
    return table


def lost_runs(states: str) -> bool:
    """Whether a configuration's ``states`` say that some seeds failed or diverged.

    >>> lost_runs("2 finished, 1 missing"), lost_runs("2 finished, 1 diverged")
    (False, True)
    """
    return FAILED in states or DIVERGED in states


def add_published(
    table: pd.DataFrame, axes: Sequence[str], published: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Adds numbers from elsewhere as columns ``NAME published``, and returns their sources.

    Args:
        table: see :func:`over_seeds`; changed in place.
        axes: names of the columns that say which rows an entry is for.
        published: entries with labels of axes, numbers and ``source``.

    Raises:
        ConfigError: an entry has another key, is for no row, or repeats a number.
    """
    for entry in published:
        if not isinstance(entry, Mapping) or set(entry) - {*axes, *NUMBERS, "source"}:
            keys = ", ".join([*axes, *NUMBERS, "source"])
            raise ConfigError(f"published must have entries with keys of {keys}, got {entry}")
        rows = pd.Series(True, table.index)
        for axis in set(axes) & set(entry):
            rows &= table[axis] == str(entry[axis])
        if not rows.any():
            raise ConfigError(f"published must have entries with labels of the axes, got {entry}")
        for name in [name for name in NUMBERS if name in entry]:
            most = 1 if name in FRACTIONS else LARGEST
            require_number("published", name, entry[name], least=0, most=most)
            column = f"{name} published"
            if column in table and table.loc[rows, column].notna().any():
                raise ConfigError(f"published must have {name} once for a configuration: {entry}")
            table.loc[rows, column] = float(entry[name])
    return list(dict.fromkeys(str(entry["source"]) for entry in published if "source" in entry))
