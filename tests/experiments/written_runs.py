"""Folders of runs as ``leadfl-pl experiment run`` leaves them, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leadfl_pl.records.rounds import write_provenance, write_rows

NONE, LEADFL = {"defense": "none"}, {"defense": "LeadFL, alpha=0.4"}


def write_cell(
    labels: dict[str, str], seed: int, accuracies: list[tuple[float, float]] = (), **record: Any
) -> Path:
    """A run in ``runs/small``, finished if it has main and backdoor accuracies, a pair a round."""
    digest = "-".join([*labels.values(), str(seed)]).replace(" ", "").replace("/", "")
    folder = Path("runs/small") / digest
    folder.mkdir(parents=True)
    command = f"leadfl-pl fit --config=a.yaml --seed_everything={seed}"
    outcome = {"status": "finished" if accuracies else "failed", "error": None, "commit": "c0ffee"}
    content = {"experiment": "small", "labels": labels, "settings": {}, "seed": seed}
    content |= {"hash": digest, "command": command, **outcome, "seconds_per_round": 0.5}
    content |= {"peak_memory_mb": 900.0} | record
    (folder / "cell.json").write_text(json.dumps(content))
    if accuracies:
        rows = [
            {
                "round": t,
                "round/malicious_sampled": 6 if t == 0 else 0,
                "round/malicious_selected": 5 if t == 0 else 0,
                "val/clean_accuracy": main,
                "val/backdoor_accuracy": backdoor,
            }
            for t, (main, backdoor) in enumerate(accuracies)
        ]
        place = {"command": f"leadfl-pl fit --trainer.default_root_dir={folder.resolve()}"}
        started = {"seed": seed, "commit": "c0ffee", "clients_per_round": 10}
        write_rows(folder / "logs/version_0", rows)
        write_provenance(folder / "logs/version_0", place | started)
    return folder


def two_defenses() -> None:
    for seed, end in enumerate((0.5, 0.7)):
        write_cell(NONE, seed, [(0.3, 1.0), (end, 0.8)])
        write_cell(LEADFL, seed, [(0.2, 1.0), (end - 0.1, 0.2)])
