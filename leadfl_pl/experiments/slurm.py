"""An experiment's jobs in a SLURM cluster's queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.experiments.jobs import Job
from leadfl_pl.experiments.progress import Display
from leadfl_pl.experiments.run import Fit, run_job


def submit_jobs(
    jobs: Sequence[Job], fit: Fit, folder: Path, parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Submits the jobs as an array, waits for all of them, and returns their records.

    Ctrl-C cancels what is queued and running; the same command goes on from the checkpoints.

    Args:
        jobs: that have not come to their end.
        fit: runs ``leadfl-pl`` with arguments, in this process.
        folder: what submitit writes goes to ``slurm`` in it. All nodes must see it.
        parameters: of ``submitit.AutoExecutor``, e.g. ``timeout_min``, ``slurm_partition``,
            ``slurm_array_parallelism``; ``cluster="local"`` runs them here instead.

    Raises:
        ConfigError: submitit is not installed, or does not take the parameters.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--slurm needs submitit: pip install 'leadfl_pl[slurm]'") from error
    settings = dict(parameters)
    try:
        executor = submitit.AutoExecutor(folder / "slurm", settings.pop("cluster", "slurm"))
        executor.update_parameters(**settings)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        text = " ".join(f"{key}={value}" for key, value in parameters.items())
        said = " ".join(str(error).split())
        raise ConfigError(f"--slurm must be parameters of submitit, got {text}: {said}") from error
    submitted = executor.map_array(partial(run_job, fit=fit), jobs)
    by_id = {task.job_id: job for task, job in zip(submitted, jobs, strict=True)}
    running = {job.folder: job for job in jobs}
    records = []
    with Display(jobs, running) as display:
        try:
            for task in submitit.helpers.as_completed(submitted):
                job = by_id[task.job_id]
                lost = task.exception()  # of the process: that of the run is in its record
                record = job.lose(str(lost)) if lost else job.read()
                del running[job.folder]
                records.append(record)
                display.ended(job, record)
        except KeyboardInterrupt:
            for task in submitted:
                task.cancel(check=False)
            raise
    return records
