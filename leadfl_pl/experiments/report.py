"""All that is written about an experiment."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.experiments.collect import collect
from leadfl_pl.experiments.figures import draw
from leadfl_pl.experiments.jobs import FINISHED
from leadfl_pl.experiments.leaderboard import BACKDOOR, MAIN, leaderboard
from leadfl_pl.experiments.over_seeds import add_published, over_seeds
from leadfl_pl.experiments.page import page
from leadfl_pl.experiments.results import Hashes, Results, read_results
from leadfl_pl.experiments.spec import Experiment
from leadfl_pl.experiments.tables import as_latex, as_markdown, caption, for_terminal, text_table
from leadfl_pl.records.files import write_whole
from leadfl_pl.records.plots import save_figure


def write_report(
    folder: Path,
    output: Path,
    experiment: Experiment | None = None,
    *,
    collected: bool = False,
    allow_mixed: bool = False,
    interquartile: bool = False,
    hashes: Hashes | None = None,
) -> tuple[Table, list[str]]:
    """Writes tables, figures and ``report.html``.

    Returns the table for the terminal, and what a reader must know of the runs.

    Args:
        folder: of the experiment's runs.
        output: where the files go.
        experiment: its runs, published numbers and figures; the runs in ``folder`` if None.
        collected: copy the records of the runs as well.
        allow_mixed: see :func:`~leadfl_pl.experiments.results.read_results`.
        interquartile: the interquartile mean over seeds in place of the mean.
        hashes: see :func:`~leadfl_pl.experiments.results.read_results`.

    Raises:
        ConfigError: the runs make no table, or ``output`` cannot be a folder or take the records.
    """
    if collected and output.resolve() == folder.resolve():
        raise ConfigError(
            f"--collect copies records: --output must not be {folder}, where they are"
        )
    results = read_results(folder, experiment, allow_mixed, hashes)
    table = over_seeds(results, interquartile)
    sources = add_published(table, results.axes, experiment.published if experiment else [])
    text = text_table(table, results.axes)
    said = caption(interquartile, sources)
    kinds = experiment.figures if experiment else None
    figures = list(draw(results, table, kinds, interquartile))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output must be a folder, got {output}: {error.strerror}") from error
    if collected:
        collect(results, output)
    notes = [*results.notes, *notes_on_unfinished(results)]
    svgs = []
    for name, title, figure in figures:
        save_figure(figure, output / f"{name}.png")
        svgs.append((title, (output / f"{name}.svg").read_text()))
    files = {
        "runs.csv": results.runs.to_csv(index=False),
        "rounds.csv": results.rounds.to_csv(index=False),
        "table.csv": table.to_csv(index=False),
        "table.md": as_markdown(text, results.axes, [said, *notes]),
        "table.tex": as_latex(text, results.axes),
        "report.html": page(results, table, text, svgs, said),
    }
    ranked = {MAIN, BACKDOOR} <= set(table) and table[MAIN].notna().iloc[0]
    if "front" in (kinds or ()) and len(results.axes) == 1 and ranked:
        files["leaderboard.md"] = leaderboard(table, results.axes[0])
    for name, content in files.items():
        write_whole(output / name, content.encode())
    return for_terminal(text, results.axes), notes


def notes_on_unfinished(results: Results) -> list[str]:
    """A line for each run that has not come to its end."""
    lines = []
    for run in results.runs[results.runs["status"] != FINISHED].to_dict("records"):
        name = ", ".join([*(run[axis] for axis in results.axes), f"seed {run['seed']}"])
        error = f": {run['error']}" if isinstance(run["error"], str) else ""
        lines.append(f"{run['status']}: {name}{error}")
    return lines
