"""What a number needs beside it to be a result: command, seed, versions, commit, machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("leadfl_pl", "torch", "torchvision", "lightning", "torchmetrics", "numpy")


def provenance(seed: int | None) -> dict[str, Any]:
    """The facts that :class:`~leadfl_pl.RunReport` writes to ``run.json``."""
    return {
        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} CPU thread(s)",
    }


def commit() -> str | None:
    """The commit of the package's own checkout, "+" if it was changed; None outside of one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", "__init__.py"):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.TimeoutExpired):
        return None
