"""Figures and the page of an experiment show all of it, and need no network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from written_runs import two_defenses, write_cell

from leadfl_pl.cli.experiment_report import main
from leadfl_pl.experiments.figures import _parts, draw, plot_rounds
from leadfl_pl.experiments.over_seeds import over_seeds
from leadfl_pl.experiments.results import read_results


def report() -> int:
    return main(["runs/small", "-o", "out"])


def test_the_same_runs_give_the_same_files() -> None:
    two_defenses()
    assert report() == 0
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert report() == 0
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == first
    assert {"table.csv", "table.md", "table.tex", "runs.csv", "rounds.csv", "report.html"} < set(
        first
    )
    assert {f"{name}.{kind}" for name in ("rounds", "front") for kind in ("png", "svg")} < set(
        first
    )


def test_a_heat_map_has_a_panel_for_each_value_of_the_third_axis_and_says_what_failed() -> None:
    for rule in ("Krum", "Median", "FedAvg"):
        for attack in ("ALIE", "IPM", "DBA", "Fang"):
            for defense in ("none", "LDP"):
                labels = {"rule": rule, "attack": attack, "defense": defense}
                failed = (rule, attack, defense) == ("Krum", "IPM", "LDP")
                write_cell(labels, 0, [] if failed else [(0.5, 0.25)])
    results = read_results(Path("runs/small"))
    figures = {name: figure for name, _, figure in draw(results, over_seeds(results), ["heatmap"])}
    assert list(figures) == ["heatmap-main", "heatmap-backdoor"]
    left, right, bar = figures["heatmap-backdoor"].axes
    assert [left.get_title(), right.get_title()] == ["defense: LDP", "defense: none"]
    assert sorted(text.get_text() for text in left.texts) == ["25"] * 11 + ["failed"]
    assert [text.get_text() for text in right.texts] == ["25"] * 12
    assert bar.get_ylabel() == "backdoor average (%)"


def test_a_band_is_the_interval_over_seeds_and_a_burst_is_shaded_by_its_share() -> None:
    two_defenses()
    results = read_results(Path("runs/small"))
    figure = plot_rounds(results.rounds, "defense", ["none", "LeadFL, alpha=0.4"], "")
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["none", "LeadFL, alpha=0.4"]
    assert left.lines[0].get_ydata() == pytest.approx([30, 60])
    band = left.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((30, 70))
    assert right.lines[1].get_ydata() == pytest.approx([100, 20])
    [shade] = left.patches
    assert (shade.get_x(), shade.get_width(), shade.get_alpha()) == (-0.5, 1, 0.25)
    results.rounds.loc[results.rounds["seed"] == 1, "burst"] = False
    half = plot_rounds(results.rounds, "defense", ["none"], "").axes[0].patches[0]
    assert half.get_alpha() == 0.125


class Page(HTMLParser):
    """The tags of a page that are open, the names in it, and where it leads."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)
        self.handle_names(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_names(attrs)

    def handle_names(self, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id":
                self.ids.append(str(value))
            if key in ("href", "xlink:href", "src", "srcset", "action"):
                self.links.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_may_show_the_pictures_in_its_heat_maps() -> None:
    for rule in ("Krum", "Median"):
        for attack in ("ALIE", "IPM"):
            write_cell({"rule": rule, "attack": attack}, 0, [(0.5, 0.25)])
    assert report() == 0
    text = Path("out/report.html").read_text()
    page = Page()
    page.feed(text)
    pictures = [link for link in page.links if link[0] != "#"]
    assert len(pictures) >= 2
    assert all(link.startswith("data:image/png;base64,") for link in pictures)
    [policy] = re.findall(r'content="(default-src[^"]*)"', text)
    assert policy.split("; ")[:2] == ["default-src 'none'", "img-src data:"]


def test_the_page_is_whole_and_every_link_stays_in_it() -> None:
    two_defenses()
    write_cell({"defense": "<b>&"}, 0, error="</code><script>alert(1)</script>")
    assert report() == 0
    text = Path("out/report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link[0] == "#" and link[1:] in page.ids for link in page.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert text.count("<svg") == 2
    assert "alert(1)</script>" not in text
    assert "leadfl-pl fit --config=a.yaml --seed_everything=1" in text


def test_figures_of_labels_that_differ_in_other_characters_have_names_of_their_own() -> None:
    frame = pd.DataFrame({"rule": ["均值", "中位数", "Krum"], "number": [1, 2, 3]})
    names = [name for name, _, _ in _parts(frame, ["rule"])]
    assert names == ["-_", "-__2", "-Krum"]
