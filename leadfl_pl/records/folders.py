"""The folders of a run: ``logs/version_N`` and ``checkpoints/version_N`` under one root.

A fresh run has the same N in both. A run that goes on has new logs, with all its rounds in them,
and keeps its folder of checkpoints.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

LOGS, CHECKPOINTS, VERSION = "logs", "checkpoints", "version_"
LAST = "last.ckpt"


def number_of(path: Path) -> int:
    """The N of ``version_N`` or ``round-N.ckpt``; -1 for any other name.

    >>> number_of(Path("logs/version_3")), number_of(Path("round-7.ckpt")), number_of(Path("old"))
    (3, 7, -1)
    """
    numbered = re.fullmatch(rf"{VERSION}(\d+)|round-(\d+)\.ckpt", path.name)
    return int(numbered[1] or numbered[2]) if numbered else -1


def next_number(root: Path) -> int:
    """The first N after all that are taken under ``root``."""
    taken = [*(root / LOGS).glob(f"{VERSION}*"), *(root / CHECKPOINTS).glob(f"{VERSION}*")]
    return max((number_of(folder) for folder in taken), default=-1) + 1


def claim(folder: Path, number: int) -> Path:
    """Makes ``folder/version_N``, N the first from ``number`` on that no other run has."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            (claimed := folder / f"{VERSION}{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return claimed


def is_run_folder(folder: Path) -> bool:
    """Whether ``folder`` is one that :func:`claim` made for checkpoints."""
    folder = folder.absolute()
    return folder.parent.name == CHECKPOINTS and number_of(folder) >= 0


def touch(folder: Path) -> None:
    """Makes the run in ``folder`` the newest."""
    os.utime(folder)


def last_checkpoint(root: Path) -> Path | None:
    """The last checkpoint of the run under ``root`` that was started or saved last, if any.

    Where ``last.ckpt`` is missing, since the run was killed while it was replaced, that is the
    ``round-N.ckpt`` with the highest N that is not cut off.
    """
    runs = [f for f in (root / CHECKPOINTS).glob(f"{VERSION}*") if number_of(f) >= 0]
    if not runs:
        return None
    newest = max(runs, key=lambda folder: (folder.stat().st_mtime_ns, number_of(folder)))
    if (newest / LAST).exists():
        return newest / LAST
    whole = [path for path in newest.glob("round-*.ckpt") if zipfile.is_zipfile(path)]
    return max(whole, key=number_of, default=None)


class RunLogger(CSVLogger):
    """CSV under ``root/logs/version_N``, in a folder that no other run has, started at once or not.

    Args:
        root: the Trainer's ``default_root_dir``.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root, name=LOGS)
        self.number: int | None = None

    @property
    def version(self) -> int:
        """The run's N, from the first time that it is asked for."""
        if self.number is None:
            number = next_number(Path(self.save_dir))
            if getattr(rank_zero_only, "rank", 0) != 0:
                return number  # rank zero has the folder, and tells its name
            self.number = number_of(claim(Path(self.root_dir), number))
        return self.number
