"""Copies of the records of runs, to be committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leadfl_pl.experiments.jobs import FINISHED, RECORD, read_record
from leadfl_pl.experiments.results import Results
from leadfl_pl.records.files import write_whole
from leadfl_pl.records.provenance import without_places
from leadfl_pl.records.rounds import PROVENANCE, ROUNDS, read_run


def collect(results: Results, output: Path) -> None:
    """Writes ``cell.json`` of every run and the rounds and provenance of finished ones.

    They go to ``output/HASH``, without places of this machine; the command in ``run.json`` is the
    one that repeats the run, wherever it was.
    """
    for run in results.runs[results.runs["hash"].notna()].to_dict("records"):
        folder, place = results.folders[run["hash"]], output / run["hash"]
        place.mkdir(parents=True, exist_ok=True)
        record = read_record(folder)
        if results.axes != ["experiment"]:  # what the tables call them: a file can rename
            record["labels"] = {axis: run[axis] for axis in results.axes}
        _write_json(place / RECORD, record)
        if record["status"] == FINISHED:
            read = read_run(folder)
            _write_json(place / PROVENANCE, read.provenance | {"command": record["command"]})
            write_whole(place / ROUNDS, (read.folder / ROUNDS).read_bytes())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(_cleaned(content), indent=2) + "\n").encode())


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cleaned(part) for part in value]
    return without_places(value) if isinstance(value, str) else value
