"""How long the command line takes to say something, against the imports alone.

    python benchmarks/startup.py [--repeats 5]

Medians of fresh processes, taken in turns; the ratio is against importing torch and Lightning.
"first round" is a FashionMNIST run of one round with one local step and the whole evaluation.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from leadfl_pl.records.provenance import command, commit, processor

ROOT = Path(__file__).parent.parent
CLI = str(ROOT / "cli.py")
CONFIG = ROOT / "configs" / "fashionmnist.yaml"
ONE_ROUND = [
    "fit", f"--config={CONFIG}", "--trainer.max_epochs=1", "--trainer.devices=1",
    "--trainer.accelerator=cpu", "--trainer.federation.local_epochs=null",
    "--trainer.federation.local_steps=1", "--trainer.default_root_dir=run",
]  # fmt: skip
COMMANDS = {
    "import torch, lightning": ["-c", "import torch, lightning.pytorch.cli"],
    "--help": [CLI, "--help"],
    "fit --help": [CLI, "fit", "--help"],
    "first round": [CLI, *ONE_ROUND],
}


def seconds(arguments: list[str]) -> float:
    """From the start of a process to its end, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments], cwd=folder, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(command())
    print(f"{os.cpu_count()} cores of {processor()}, commit {commit()}")
    seconds(COMMANDS["fit --help"])  # the files come off the disk once
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.repeats):
        for name, typed in COMMANDS.items():
            taken[name].append(seconds(typed))
    first = statistics.median(taken["import torch, lightning"])
    for name, found in taken.items():
        median = statistics.median(found)
        print(f"{name:<24} {median:5.2f} s  (most {max(found):5.2f})  x {median / first:4.2f}")


if __name__ == "__main__":
    main()
