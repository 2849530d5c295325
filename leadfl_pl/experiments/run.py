"""Runs the jobs of an experiment, several at a time, and loses nothing that has been run."""

from __future__ import annotations

import fcntl
import gc
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import BrokenProcessPool

from leadfl_pl.experiments.gpus import take_gpu, visible_gpus
from leadfl_pl.experiments.jobs import FAILED, FINISHED, RUNNING, STOPPED, Job
from leadfl_pl.experiments.progress import Display
from leadfl_pl.experiments.signals import SIGNALS, handlers, wakeup

Fit = Callable[[list[str]], int]  # arguments of ``leadfl-pl`` -> its exit status
OUTPUT = "output.txt"
KILLED = "its process, or that of a run beside it, was killed"
INTERRUPTED = tuple(128 + number for number in SIGNALS)


def run_jobs(jobs: Sequence[Job], fit: Fit, at_once: int) -> list[dict[str, Any]]:
    """Runs the jobs, several of them in processes of their own, and returns their records.

    Ctrl-C and SIGTERM let the running ones end after their rounds and start no other; Ctrl-C again
    ends them at once.

    Args:
        jobs: that have not come to their end.
        fit: runs ``leadfl-pl`` with arguments, in this process.
        at_once: how many at a time; one runs in this process.
    """
    queue: Iterator[Job] = iter(jobs)
    running: dict[Path, Job] = {}
    records: list[dict[str, Any]] = []

    def deliver(job: Job) -> None:
        while job.folder in running and not interrupt(job):  # it is about to start
            time.sleep(0.1)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for job in list(running.values()):
            threading.Thread(target=deliver, args=(job,), daemon=True).start()

    def waiting() -> Iterator[Any]:
        for job in queue:
            if signalled() or any(record["status"] == STOPPED for record in records):
                return
            left = job.read()
            if left.get("status") == RUNNING and not is_locked(job):  # its process was killed
                job.write(**left | {"status": STOPPED})
            running[job.folder] = job
            yield delayed(run_job)(job, fit, apart=at_once > 1, gpus=gpus)

    def ended(job: Job, record: dict[str, Any]) -> None:
        del running[job.folder]
        records.append(record)
        display.ended(job, record)

    gpus = visible_gpus() if at_once > 1 else []
    by_hash = {job.record["hash"]: job for job in jobs}
    with Display(jobs, running) as display, ExitStack() as stack:
        signalled = stack.enter_context(wakeup())
        if at_once > 1:  # alone, the run itself handles the signal
            stack.enter_context(handlers(pass_on))
            stack.enter_context(parallel_config(backend="loky", inner_max_num_threads=1))
        settings = {"batch_size": 1, "pre_dispatch": "n_jobs", "return_as": "generator_unordered"}
        while True:
            parallel = Parallel(at_once, **settings)
            try:
                for record in parallel(waiting()):
                    ended(by_hash[record["hash"]], record)
                return records
            except BrokenProcessPool:  # a worker that dies takes the others with it
                found = [(job, job.read()) for job in running.values()]
                begun = any(record.get("status") in (RUNNING, FINISHED) for _, record in found)
                for job, record in found:
                    if record.get("status") == FINISHED:
                        ended(job, record)
                    elif record.get("status") == RUNNING or not begun:
                        ended(job, job.lose(KILLED, STOPPED if signalled() else FAILED))
                queue = chain(list(running.values()), queue)
                running.clear()


def interrupt(job: Job) -> bool:
    """Sends Ctrl-C to the process that this one has started for a job, if it has begun.

    Whatever the signal was: SIGTERM would end a process that still prepares its run.
    """
    record = job.read()
    if record.get("status") != RUNNING or record.get("parent") != os.getpid():
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(record["pid"], signal.SIGINT)
    return True


def is_locked(job: Job) -> bool:
    """Whether a process has the job's run, this one or that of another ``experiment run``."""
    with (job.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def run_job(job: Job, fit: Fit, apart: bool = False, gpus: Sequence[str] = ()) -> dict[str, Any]:
    """Runs a job in this process and returns its record.

    What it prints goes to ``output.txt`` in its folder.

    Args:
        job: what to run.
        fit: runs ``leadfl-pl`` with arguments, in this process.
        apart: this process is for that alone. It ends the run after its round when the process
            that started it is gone.
        gpus: of which a process that is apart takes one.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    if apart:
        separate(gpus)
    with (job.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a run whose parent was killed goes on to its round's end
        if (record := job.read()).get("status") == FINISHED:  # by it, or by another experiment run
            return record
        before, done = record.get("seconds", 0.0), job.rounds_done()
        started = time.monotonic()
        code = job.code_so_far()
        gc.collect()  # of the run before, whose memory would count for this one
        reset_peak_memory()
        begun = code | {"pid": os.getpid(), "parent": os.getppid(), "seconds": before}
        with output_to(job.folder / OUTPUT), wandb_run(job):
            status, error = attempt(job, fit, begun, apart)
        seconds = time.monotonic() - started
        return job.write(
            **code,
            status=status,
            error=error,
            seconds=round(before + seconds, 2),
            seconds_per_round=round(seconds / max(1, job.rounds_done() - done), 3),
            peak_memory_mb=peak_memory_mb(),
        )


def separate(gpus: Sequence[str]) -> None:
    """Takes this process out of the reach of the terminal's Ctrl-C, ties it to its parent, and
    gives it one of the GPUs.
    """
    if os.getpgrp() == os.getpid():
        return
    os.setpgrp()
    take_gpu(gpus)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # but during a run
    parent = os.getppid()

    def watch() -> None:
        while True:  # the first ends a run after its round, one after that the process
            time.sleep(0.5)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def attempt(job: Job, fit: Fit, begun: dict[str, Any], apart: bool) -> tuple[str, str | None]:
    """What becomes of the run, and the error if one ended it; ``begun`` is in its record before."""
    sys.argv = ["leadfl-pl", *job.arguments]  # what the run's own record says
    try:
        if apart:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        job.write(**begun, status=RUNNING)
        code: Any = fit(job.arguments)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except Exception as error:
        traceback.print_exc()
        return FAILED, f"{type(error).__name__}: {error}"
    finally:
        if apart:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not code:
        return FINISHED, None
    if code in INTERRUPTED:
        return STOPPED, None
    sys.stderr.flush()
    said = re.findall(r"^error: (.*)$", (job.folder / OUTPUT).read_text(), re.MULTILINE)
    return FAILED, said[-1] if said else f"ended with status {code}"


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Appends all that this process prints to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as file:
        saved = {stream: os.dup(stream) for stream in (1, 2)}
        for stream in saved:
            os.dup2(file.fileno(), stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, copy in saved.items():
                os.dup2(copy, stream)
                os.close(copy)


@contextmanager
def wandb_run(job: Job) -> Iterator[None]:
    """Names the run for Weights & Biases, grouped by experiment; the next one is another run."""
    os.environ |= {"WANDB_RUN_GROUP": job.record["experiment"], "WANDB_NAME": str(job.cell)}
    try:
        yield
    finally:
        if wandb := sys.modules.get("wandb"):  # not imported without its logger
            wandb.finish()
            wandb.teardown()  # else it knows the names of the first run only


def reset_peak_memory() -> None:
    """Starts the peak of this process's memory anew, where the system is Linux."""
    counters = Path("/proc/self/clear_refs")
    if counters.exists():
        counters.write_text("5")


def peak_memory_mb() -> float | None:
    """The most memory that this process has held since, in MB; None where nobody knows."""
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return round(int(peak[1]) / 1000, 1) if peak else None
