"""Whole runs from the command line: seconds a round and memory, by processes and threads.

    python benchmarks/run.py [--config configs/released.yaml] [--rounds 4]
        [--variants 1x1 1x2 2x1 1x1+twin] [-- further flags of cli.py]

PxT is P processes with T threads each; +twin runs the clean twin beside the run (AttackEffect).
"first" is from the command to the end of round 0, start-up
included; a round is the median time between two lines of the progress output. Memory is summed over
the run's processes, until the last round ends (at exit, more pages of the libraries' files become
resident): the most that each has had resident (RSS), which the kernel remembers, and the
largest sum of proportional shares (PSS: what several processes share is counted once). Shares are
looked up every five seconds only, since the kernel stops a process for that. The variants run one
after the other; the ratio is against the first.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from leadfl_pl.records.provenance import command, commit, processor

ROOT = Path(__file__).parent.parent
ROUND = re.compile(r"^round \d+ ")


class Measured(NamedTuple):
    """One run."""

    first_round: float  # seconds from the command to the end of round 0
    round: float  # median seconds of the others
    rss: float  # MB
    pss: float  # MB


def processes(pid: int) -> list[int]:
    """``pid`` and all that descend from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(p for child in children for p in processes(int(child)))]


def memory(pid: int, file: str, key: str) -> float:
    """What ``/proc/PID/file`` says under ``key``, in MB, summed over the processes."""
    total = 0.0
    for process in processes(pid):
        try:
            text = Path(f"/proc/{process}/{file}").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if found := re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE):
            total += int(found[1]) / 1024
    return total


def measure(config: str, rounds: int, count: int, threads: int, flags: list[str]) -> Measured:
    """Runs the command once in an empty folder."""
    command = [
        sys.executable, str(ROOT / "cli.py"), "fit", f"--config={ROOT / config}",
        f"--trainer.max_epochs={rounds}", f"--trainer.devices={count}",
        f"--trainer.threads={threads}", "--trainer.accelerator=cpu",
        "--trainer.default_root_dir=run", *flags,
    ]  # fmt: skip
    ends: list[float] = []
    rss = pss = 0.0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = subprocess.Popen(
            command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )

        def watch() -> None:
            nonlocal rss, pss
            for tick in itertools.count():
                if len(ends) == rounds or run.poll() is not None:
                    return
                rss = max(rss, memory(run.pid, "status", "VmHWM"))
                if tick % 10 == 9:
                    pss = max(pss, memory(run.pid, "smaps_rollup", "Pss"))
                time.sleep(0.5)

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert run.stderr is not None
        said = []
        for line in run.stderr:
            said.append(line)
            if ROUND.match(line):
                ends.append(time.perf_counter() - start)
        watcher.join()
    if run.returncode or len(ends) != rounds:
        raise RuntimeError("".join(said[-20:]))
    times = [b - a for a, b in itertools.pairwise(ends)]
    return Measured(ends[0], statistics.median(times), rss, pss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/released.yaml")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--variants", nargs="+", default=["1x1", "1x2", "2x1"])
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    print(command())
    print(f"{os.cpu_count()} cores of {processor()}, commit {commit()}")
    print("variant     first s  s a round  ratio   RSS MB   PSS MB")
    first = None
    for variant in arguments.variants:
        count, threads = map(int, variant.removesuffix("+twin").split("x"))
        twin = f"--diagnostics={ROOT / 'configs/diagnostics/attack_effect.yaml'}"
        flags = [*arguments.flags, *([twin] if variant.endswith("+twin") else [])]
        found = measure(arguments.config, arguments.rounds, count, threads, flags)
        first = first or found
        print(
            f"{variant:>8} {found.first_round:10.1f} {found.round:10.2f} "
            f"{first.round / found.round:6.2f} {found.rss:8.0f} {found.pss:8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
