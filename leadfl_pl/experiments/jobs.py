"""The jobs of an experiment: each is one run, in a folder of its own, with a record beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.experiments.spec import Cell
from leadfl_pl.records.files import write_whole
from leadfl_pl.records.folders import LOGS, VERSION
from leadfl_pl.records.provenance import commit
from leadfl_pl.records.rounds import ROUNDS

Resolve = Callable[[list[str]], dict[str, Any]]  # arguments of fit -> the whole configuration
RECORD = "cell.json"
FINISHED, FAILED, STOPPED, RUNNING = "finished", "failed", "stopped", "running"
WHERE = (  # keys under trainer that say where a run takes place and what it leaves
    "default_root_dir",
    "devices",
    "num_nodes",
    "strategy",
    "logger",
    "enable_progress_bar",
    "enable_model_summary",
    "enable_checkpointing",
)


class Job(NamedTuple):
    """A run of an experiment, and where it is to be."""

    folder: Path
    cell: Cell
    arguments: list[str]  # of ``leadfl-pl``
    rounds: int
    record: dict[str, Any]  # that goes to ``cell.json``, with what becomes of the run

    def read(self) -> dict[str, Any]:
        """What ``cell.json`` says, empty if there is none."""
        return read_record(self.folder)

    def write(self, **outcome: Any) -> dict[str, Any]:
        """Writes ``cell.json``, whole or not at all, and returns what it says."""
        record = self.record | outcome
        write_whole(self.folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())
        return record

    def lose(self, error: str, status: str = FAILED) -> dict[str, Any]:
        """Writes that the run's process is gone, and returns what ``cell.json`` says."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.write(**{"seconds": 0.0} | self.read() | {"status": status, "error": error})

    def code_so_far(self) -> dict[str, Any]:
        """What ``cell.json`` is to say of the code: that of the rounds done, and this one."""
        before = self.read()
        if not before or not self.rounds_done():
            return {}
        commits = dict.fromkeys([*str(before["commit"]).split(", "), self.record["commit"]])
        return {"commit": ", ".join(commits), "own_code": before.get("own_code", {})}

    def rounds_done(self) -> int:
        """How many rounds the run has had so far."""
        counts = [0]
        for path in (self.folder / LOGS).glob(f"{VERSION}*/{ROUNDS}"):
            counts.append(path.read_bytes().count(b"\n") - 1)
        return max(counts)


def read_record(folder: Path) -> dict[str, Any]:
    """The ``cell.json`` in a folder, empty if there is none."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / RECORD} must be JSON, got {error}") from error
    return record


def plan(name: str, cells: Iterable[Cell], folder: Path, resolve: Resolve) -> list[Job]:
    """The jobs of all cells, each in a folder named by the hash of its resolved configuration.

    Args:
        name: of the experiment.
        cells: its runs.
        folder: theirs are in it.
        resolve: the whole configuration that arguments stand for.

    Raises:
        ConfigError: a key that is none, a value that cannot be, several devices a run, or two cells
            of one configuration.
    """
    jobs: dict[str, Job] = {}
    resolved: dict[tuple[str, ...], dict[str, Any]] = {}  # the seeds of a combination share it
    now = code()
    for cell in cells:
        if (key := tuple(cell.arguments)) not in resolved:
            try:
                resolved[key] = resolve(cell.fit)
            except ConfigError as error:
                raise ConfigError(f"{name}, {cell}: {error}") from error
        _check_trainer(f"{name}, {cell}", resolved[key]["trainer"])
        digest = config_hash(resolved[key], cell.seed)
        if digest in jobs:
            raise ConfigError(
                f"{name} must have cells of different configurations, "
                f"got the same for {jobs[digest].cell} and {cell}"
            )
        record = {
            "experiment": name,
            "labels": cell.labels,
            "settings": cell.settings,
            "seed": cell.seed,
            "hash": digest,
            "commit": now,
            "own_code": own_code(resolved[key]),
            "command": cell.command,
        }
        trainer = resolved[key]["trainer"]
        place = [f"--trainer.default_root_dir={folder / digest}", "--ckpt_path=last"]
        place += ["--trainer.logger=true"] * (trainer.get("logger") is False)  # the report reads it
        rounds = int(trainer["max_epochs"])
        jobs[digest] = Job(folder / digest, cell, [*cell.fit, *place], rounds, record)
    return list(jobs.values())


def code() -> str:
    """The package's commit; outside of a checkout its version."""
    return commit() or f"leadfl_pl {version('leadfl_pl')}"


def _check_trainer(run: str, trainer: Mapping[str, Any]) -> None:
    devices, rounds = trainer["devices"], trainer["max_epochs"]
    if str(devices) != "1":
        raise ConfigError(
            f"{run}: trainer.devices must be 1, since the runs share the machine "
            f"(CUDA_VISIBLE_DEVICES says which GPUs), got {devices}"
        )
    if rounds is None or rounds < 1:
        raise ConfigError(f"{run}: trainer.max_epochs must be >= 1, got {rounds}")


def config_hash(config: dict[str, Any], seed: int) -> str:
    """Twelve hexadecimal digits for a configuration, the same wherever it is run."""
    trainer = {k: v for k, v in config["trainer"].items() if k not in WHERE}
    parts = {k: config.get(k) for k in ("model", "data", "diagnostics")}
    text = json.dumps({"trainer": trainer, "seed": seed, **parts}, sort_keys=True)
    return sha256(text.encode()).hexdigest()[:12]


def own_code(config: Any) -> dict[str, str]:
    """The classes in a configuration that are not of this package, with a digest of their files."""
    if isinstance(config, list):
        config = dict(enumerate(config))
    if not isinstance(config, dict):
        return {}
    digests: dict[str, str] = {}
    for value in config.values():
        digests |= own_code(value)
    name = str(config.get("class_path", ""))
    if name and not name.startswith("leadfl_pl."):
        place, _, kind = name.rpartition(".")
        cls = getattr(import_module(place), kind)  # of a package, or of the module that defines it
        file = str(import_module(cls.__module__).__file__)
        digests[name] = sha256(Path(file).read_bytes()).hexdigest()[:12]
    return digests


def unfinished(jobs: Sequence[Job], allow_mixed: bool = False) -> list[Job]:
    """Those of the jobs that have not come to their end.

    Raises:
        ConfigError: some were run by another commit, or before a class of one's own was changed,
            and that is not allowed.
    """
    pairs = [(job, job.read()) for job in jobs]
    if not allow_mixed:
        _refuse_other_code([(job, record) for job, record in pairs if record])
    return [job for job, record in pairs if record.get("status") != FINISHED]


def _refuse_other_code(begun: Sequence[tuple[Job, dict[str, Any]]]) -> None:
    now = code()
    if others := {str(record["commit"]) for _, record in begun if record["commit"] != now}:
        raise ConfigError(
            f"{begun[0][0].folder.parent} must have runs of commit {now} only, got runs of "
            f"{', '.join(sorted(others))}: remove them, or take both with --allow-mixed"
        )
    for job, record in begun:
        for name, digest in record.get("own_code", {}).items():
            if digest != job.record["own_code"].get(name):
                raise ConfigError(
                    f"{job.folder} was run before the file of {name} was changed: remove it and "
                    "others like it, or take both with --allow-mixed"
                )
