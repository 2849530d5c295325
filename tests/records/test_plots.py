"""Figures of several runs show what there is, and every run in the legend."""

from __future__ import annotations

import pytest

from leadfl_pl.records.plots import plot_comparison

CLEAN = [{"round": t, "round/malicious_sampled": 6 - t, "val/clean_accuracy": 0.5} for t in (0, 1)]
BACKDOOR = [row | {"val/backdoor_accuracy": 0.1} for row in CLEAN]


def panels(*runs: list[dict[str, float]]) -> list[str]:
    figure = plot_comparison([(str(i), rows) for i, rows in enumerate(runs)], majority=5)
    return [ax.get_ylabel() for ax in figure.axes]


def test_there_is_a_backdoor_panel_if_any_run_has_one() -> None:
    assert panels(CLEAN, CLEAN) == ["clean accuracy (%)"]
    assert panels(CLEAN, BACKDOOR) == ["clean accuracy (%)", "backdoor accuracy (%)"]


def test_runs_of_the_same_name_are_two_lines() -> None:
    figure = plot_comparison([("a", CLEAN), ("a", CLEAN)], majority=6)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "a"]


@pytest.mark.parametrize(("count", "name"), [(5, "alpha=0.0"), (12, "alpha=0.0"), (4, "n" * 40)])
def test_the_legend_fits_into_the_figure(count: int, name: str) -> None:
    figure = plot_comparison([(name, BACKDOOR)] * count, majority=5)
    figure.savefig("comparison.png")
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert figure.axes[0].get_window_extent().height > 0.5 * figure.bbox.height
