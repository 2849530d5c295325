"""Kills runs of the quickstart with SIGKILL, resumes them, and compares with one that was not.

    OMP_NUM_THREADS=1 python benchmarks/crash.py

One kill at each of eleven moments of a round, among them the write of the checkpoint, the gather
and the evaluation, and nine after random times. Compared are the weights and all other
state in the last checkpoint, ``rounds.csv``, and the rows of ``metrics.csv`` that the resumed run
wrote. Ends with 1 if one differs.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from rich.console import Console
from rich.table import Table

from leadfl_pl.cli.main import main as command_line
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.config import Federation
from leadfl_pl.records.folders import last_checkpoint
from leadfl_pl.records.rounds import ROUNDS, read_run

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
CHECKPOINT = r"round-\d+\.ckpt$"


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(owner: Any, name: str, count: int, where: str = "") -> None:
    """Has the process killed at the n-th call of ``owner.name`` on something like ``where``."""
    original, calls = getattr(owner, name), 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += any(re.search(where, str(arg)) is not None for arg in args)
        return kill() if calls == count else original(*args, **kwargs)

    setattr(owner, name, counting)


class HalfFile:
    """A file in the middle of whose first write the process is killed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def __enter__(self) -> HalfFile:
        return self

    def write(self, data: memoryview) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        kill()

    def __exit__(self, *_: object) -> None: ...


def kill_in_write(count: int) -> None:
    original, calls = Path.open, 0

    def opening(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        file = original(path, mode, *args, **kwargs)
        calls += mode == "xb" and path.name.startswith("round-")
        return HalfFile(file) if calls == count else file

    Path.open = opening  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[int], None]] = {  # of round r, from 1 on
    "write of the checkpoint": kill_in_write,
    "rename of the checkpoint": lambda r: kill_at(os, "replace", r, CHECKPOINT),
    "rename of last.ckpt": lambda r: kill_at(os, "replace", r, r"last\.ckpt$"),
    "gather": lambda r: kill_at(SingleDeviceStrategy, "all_gather", r),
    "evaluation": lambda r: kill_at(FederatedClient, "validation_step", 2 * r),  # of two batches
    "link of last.ckpt": lambda r: kill_at(os, "link", r),
    "rename of rounds.csv": lambda r: kill_at(os, "replace", r, ROUNDS),
    "serialisation": lambda r: kill_at(torch, "save", r),
    "removal of an old one": lambda r: kill_at(Path, "unlink", r - 2, CHECKPOINT),
    "aggregation": lambda r: kill_at(Federation, "aggregate", r),
    "fifth client": lambda r: kill_at(FederatedClient, "on_train_batch_start", 10 * r - 5),
}
FIRST = {"removal of an old one": 3}  # round in which it happens


class Kill(NamedTuple):
    """When a run is killed."""

    moment: str
    prepare: Callable[[], None] | None  # what the run's process does first
    delay: float  # seconds


def run(
    flags: list[str],
    root: Path,
    prepare: Callable[[], None] | None = None,
    delay: float = float("inf"),
) -> int:
    """The status of a run in a process of its own, killed after ``delay`` seconds if not before."""
    if (pid := os.fork()) == 0:
        root.mkdir(parents=True, exist_ok=True)
        output = os.open(root / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["cli.py"]
        if prepare is not None:
            prepare()
        os._exit(command_line([*flags, f"--trainer.default_root_dir={root}"]))
    end = time.monotonic() + delay
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.005)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end = float("inf")
    return os.waitstatus_to_exitcode(done[1])


def state(root: Path) -> dict[str, Any]:
    """What the last checkpoint under ``root`` holds of the federation."""
    checkpoint = torch.load(last_checkpoint(root), weights_only=True)
    loop = checkpoint["loops"]["fit_loop"]["state_dict"]
    return {"weights": checkpoint["state_dict"], "rounds": checkpoint["global_step"]} | loop


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states have the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return bool(a == b)


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of the logger, none where no round was left to run."""
    if not (folder / "metrics.csv").is_file():
        return []
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(whole: Path, resumed: Path) -> bool:
    """Whether a resumed run has come to the same end as the whole one."""
    expected, found = read_run(whole).folder, read_run(resumed).folder
    all_rows, rows = metrics(expected), metrics(found)
    return (
        equal(state(whole), state(resumed))
        and (expected / ROUNDS).read_bytes() == (found / ROUNDS).read_bytes()
        and all_rows[len(all_rows) - len(rows) :] == rows
    )


def kills(moments: int, random_times: int, rounds: int, duration: float, seed: int) -> list[Kill]:
    """The first named moments, each of a random round, and random times."""
    draw = random.Random(seed)
    chosen = []
    for name, at in list(MOMENTS.items())[:moments]:
        r = draw.randint(FIRST.get(name, 1), rounds)
        chosen.append(Kill(f"{name}, round {r}", partial(at, r), float("inf")))
    for _ in range(random_times):
        delay = draw.uniform(0, duration)
        chosen.append(Kill("random time", None, delay))
    return chosen


def main() -> int:
    """Prints a table with a row a kill."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--moments", type=int, default=len(MOMENTS))
    parser.add_argument("--random", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments, extra = parser.parse_known_args()
    flags = ["fit", f"--config={QUICKSTART}", f"--trainer.max_epochs={arguments.rounds}", *extra]
    table = Table("kill", "moment", "rounds in last", "resumed run")
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "whole")
        for root in (Path(scratch, "warm-up"), whole):
            start = time.monotonic()
            if run(flags, root):
                print((root / "output.txt").read_text(), file=sys.stderr)
                return 1
        duration = time.monotonic() - start
        chosen = kills(
            arguments.moments, arguments.random, arguments.rounds, duration, arguments.seed
        )
        for i, (moment, prepare, delay) in enumerate(chosen, 1):
            root = Path(scratch, str(i))
            while run(flags, root, prepare, delay) != -signal.SIGKILL:
                delay /= 2  # it had ended before
                root = root.with_name(root.name + "-again")
            found = str(state(root)["rounds"]) if last_checkpoint(root) else "none"
            good = run([*flags, "--ckpt_path=last"], root) == 0 and same(whole, root)
            failed += not good
            when = moment if prepare else f"after {delay:.2f} s"
            table.add_row(str(i), when, found, "equal" if good else "DIFFERS")
            if not good:
                print((root / "output.txt").read_text(), file=sys.stderr)
    Console(width=100).print(table)
    print(f"{failed} of {len(chosen)} differ; a whole run took {duration:.1f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
