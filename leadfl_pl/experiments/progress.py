"""What one sees while an experiment runs: its rounds, its time left, the runs at work."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from leadfl_pl.experiments.jobs import FINISHED, Job

SECONDS = 1.0  # between two looks at the folders


class Display:
    """Bars over the rounds of all jobs and of the running ones; a line for each that has ended.

    Args:
        jobs: all that will run.
        running: those that run now, by folder.
    """

    def __init__(self, jobs: Sequence[Job], running: Mapping[Path, Job]) -> None:
        self.running = running
        self.jobs = len(jobs)
        self.seen = 0  # that have ended
        self.done = {job.folder: job.rounds_done() for job in jobs}
        # a run in this process has its standard output and errors in a file
        self.terminal = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("rounds"), TimeRemainingColumn(), console=Console(file=self.terminal),
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        total = sum(max(job.rounds, self.done[job.folder]) for job in jobs)
        self.all = self.progress.add_task(self.headline, total=total)
        self.bars: dict[Path, Any] = {}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    @property
    def headline(self) -> str:
        """How many runs have ended."""
        return f"{self.seen} of {self.jobs} runs"

    def __enter__(self) -> Display:
        self.progress.start()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.over.set()
        self.thread.join()
        self.look()
        self.progress.stop()
        self.terminal.close()

    def watch(self) -> None:
        """Looks at the running jobs until all is over."""
        while not self.over.wait(SECONDS):
            self.look()

    def look(self) -> None:
        """Takes over how far the running jobs are."""
        for folder, job in list(self.running.items()):
            if folder not in self.bars:
                self.bars[folder] = self.progress.add_task(escape(str(job.cell)), total=job.rounds)
            self.done[folder] = job.rounds_done()
            self.progress.update(self.bars[folder], completed=self.done[folder])
        for folder in self.bars.keys() - self.running.keys():
            self.progress.remove_task(self.bars.pop(folder))
        self.progress.update(self.all, completed=sum(self.done.values()), description=self.headline)

    def ended(self, job: Job, record: Mapping[str, Any]) -> None:
        """Says what became of a job."""
        self.seen += 1
        self.done[job.folder] = job.rounds
        said = record["status"] if record["status"] == FINISHED else (
            f"[red]{record['status']}[/red]" + (f": {escape(record['error'])}" if record["error"]
            else "")
        )  # fmt: skip
        self.progress.console.print(f"{escape(str(job.cell))}: {said}, {record['seconds']:.0f} s")
