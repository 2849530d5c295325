"""Kills runs of the quickstart with SIGKILL, resumes them, and compares with one that was not.

    python benchmarks/crash.py

One kill at each of eleven moments of a round, among them the write of the checkpoint, the gather of
two processes and the evaluation, and nine after random times. Compared are the weights and all
other state in the last checkpoint, ``rounds.csv``, and the rows of ``metrics.csv`` that the resumed
run wrote. Ends with 1 if one differs.
"""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from leadfl_pl.cli.main import main as command_line
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.server import Server
from leadfl_pl.records.checkpoints import KEPT
from leadfl_pl.records.folders import LAST, last_checkpoint
from leadfl_pl.records.rounds import ROUNDS, read_run
from leadfl_pl.trainer.strategy import FederatedStrategy

ROOT = Path(__file__).parent.parent
CHECKPOINT = r"round-\d+\.ckpt$"


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(owner: Any, name: str, skip: int, where: str = "") -> None:
    """Has the process killed instead of calling ``owner.name`` on something like ``where``.

    Args:
        skip: how many such calls go before.
    """
    original, calls = getattr(owner, name), count()

    def counting(*args: Any, **kwargs: Any) -> Any:
        if any(re.search(where, str(arg)) for arg in args) and next(calls) == skip:
            kill()
        return original(*args, **kwargs)

    setattr(owner, name, counting)


class HalfFile(io.FileIO):
    """A file in the middle of whose first write the process is killed."""

    def write(self, data: Any) -> int:
        super().write(data[: len(data) // 2])
        kill()
        return 0


def kill_in_write(skip: int) -> None:
    original, calls = Path.open, count()

    def opening(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "xb" and path.name.startswith("round-") and next(calls) == skip:
            return HalfFile(path, mode)
        return original(path, mode, *args, **kwargs)

    Path.open = opening  # type: ignore[assignment, method-assign]


class Moment(NamedTuple):
    """A place in a round."""

    kill: Callable[[int], None]  # has the process killed there in round r
    first: int = 0  # round that has it
    flags: tuple[str, ...] = ()


MOMENTS = {
    "write of the checkpoint": Moment(kill_in_write),
    "creation of last.ckpt": Moment(lambda r: kill_at(os, "symlink", r, LAST), 1),
    "removal of last.ckpt": Moment(lambda r: kill_at(os, "remove", r - 1, LAST), 1),
    "removal of an old one": Moment(lambda r: kill_at(os, "remove", r - KEPT, CHECKPOINT), KEPT),
    "rename of rounds.csv": Moment(lambda r: kill_at(os, "replace", r, ROUNDS)),
    "rename of the checkpoint": Moment(lambda r: kill_at(os, "replace", r, CHECKPOINT)),
    "serialisation": Moment(lambda r: kill_at(torch, "save", r)),
    "gather": Moment(
        lambda r: kill_at(FederatedStrategy, "all_gather", r), flags=("--trainer.devices=2",)
    ),
    "server step": Moment(lambda r: kill_at(Server, "step", r)),
    "evaluation": Moment(  # the second of two batches
        lambda r: kill_at(FederatedClient, "validation_step", 2 * r + 1)
    ),
    "fifth client": Moment(lambda r: kill_at(FederatedClient, "finish_round", 10 * r + 4)),
}


def fit(flags: list[str], prepare: Callable[[], None] | None, output: Path) -> None:
    """A run in a process of its own, which is prepared to be killed."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [str(ROOT / "cli.py"), *flags]  # what Lightning starts a second process with
    if prepare is not None:
        prepare()
    sys.exit(command_line(flags))


def run(
    flags: list[str],
    root: Path,
    prepare: Callable[[], None] | None = None,
    delay: float | None = None,
) -> int | None:
    """The status of a run under ``root``, killed after ``delay`` seconds if not before."""
    root.mkdir(parents=True, exist_ok=True)
    flags = [*flags, f"--trainer.default_root_dir={root}"]
    process = multiprocessing.get_context("fork").Process(
        target=fit, args=(flags, prepare, root / "output.txt")
    )
    process.start()
    process.join(delay)
    process.kill()
    process.join()
    return process.exitcode


def state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds of the federation."""
    checkpoint = torch.load(path, weights_only=True)
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
    expected, folder = read_run(whole).folder, read_run(resumed).folder
    all_rows, rows = metrics(expected), metrics(folder)
    last, resumed_last = last_checkpoint(whole), last_checkpoint(resumed)
    assert last is not None
    assert resumed_last is not None
    return (
        equal(state(last), state(resumed_last))
        and (expected / ROUNDS).read_bytes() == (folder / ROUNDS).read_bytes()
        and all_rows[len(all_rows) - len(rows) :] == rows
    )


def left(root: Path) -> str:
    """How many rounds the checkpoint has that a killed run can go on from."""
    if (last := last_checkpoint(root)) is None:
        return "none"
    return f"{state(last)['rounds']}" + (f", no {LAST}" if last.name != LAST else "")


class Kill(NamedTuple):
    """When a run is killed."""

    when: str
    prepare: Callable[[], None] | None  # what the run's process does first
    delay: float | None  # seconds
    flags: tuple[str, ...]


def kills(moments: int, random_times: int, rounds: int, duration: float, seed: int) -> list[Kill]:
    """The first named moments, each of a random round, and random times."""
    draw = random.Random(seed)
    chosen = []
    for name, moment in list(MOMENTS.items())[:moments]:
        r = draw.randrange(moment.first, rounds)
        chosen.append(Kill(f"{name}, round {r}", partial(moment.kill, r), None, moment.flags))
    delays = [draw.uniform(0, duration) for _ in range(random_times)]
    return chosen + [Kill(f"after {delay:.2f} s", None, delay, ()) for delay in delays]


def main() -> int:
    """Prints a table with a row a kill."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--moments", type=int, default=len(MOMENTS))
    parser.add_argument("--random", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments, extra = parser.parse_known_args()
    config = ROOT / "configs" / "quickstart.yaml"
    flags = ["fit", f"--config={config}", f"--trainer.max_epochs={arguments.rounds}", *extra]
    torch.set_num_threads(1)  # a process with more cannot be forked
    table = Table("kill", "moment", "rounds left", "resumed run")
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
        for i, (when, prepare, delay, more) in enumerate(chosen, 1):
            root = Path(scratch, str(i))
            while run([*flags, *more], root, prepare, delay) != -signal.SIGKILL:
                assert delay is not None, f"{when} never came"
                delay /= 2  # it had ended before
                root = root.with_name(root.name + "-again")
            rounds = left(root)
            good = run([*flags, *more, "--ckpt_path=last"], root) == 0 and same(whole, root)
            failed += not good
            table.add_row(str(i), when, rounds, "equal" if good else "DIFFERS")
            if not good:
                print((root / "output.txt").read_text(), file=sys.stderr)
    Console(width=100).print(table)
    print(f"{failed} of {len(chosen)} differ; a whole run took {duration:.1f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
