"""What a number needs beside it to be a result: command, seed, versions, commit, machine."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ABSOLUTE = re.compile(r"(?<![\w./~*-])/(?:[^\s/'\":,=\\]+/)+([^\s'\":,\\]*)")
# what a command runs besides the package; an experiment's cells are known by all their settings
OTHERS = ("{}/cli.py", "{}/configs", ":(exclude){}/configs/experiments")
PACKAGES = ("leadfl_pl", "torch", "torchvision", "lightning", "torchmetrics", "numpy")


def provenance(seed: int | None) -> dict[str, Any]:
    """What :class:`~leadfl_pl.RunReport` writes to ``run.json`` of any run."""
    return {
        "command": command(),
        "seed": seed,
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} CPU thread(s)",
        "processor": processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """What a run trains on, and of a GPU what its digits depend on."""
    if device.type != "cuda":
        return {"device": device.type}
    convolutions = getattr(torch.backends.cudnn, "conv", None)  # from PyTorch 2.9 on
    return {
        "device": torch.cuda.get_device_name(device),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_convolutions": getattr(convolutions, "fp32_precision", None),
        "float32_matrix_products": getattr(torch.backends.cuda.matmul, "fp32_precision", None),
    }


def command() -> str:
    """What was typed to start this process, quoted for a shell."""
    script, *arguments = sys.argv
    start = ["leadfl-pl"] if Path(script).stem == "leadfl-pl" else ["python", script]
    return shlex.join([*start, *arguments])


def without_places(text: str) -> str:
    """Text in which paths below this folder are relative, and of other absolute ones the end.

    >>> without_places(f"{Path.cwd()}/runs/a, /home/me/data.csv, 3/4, https://pytorch.org/docs/")
    'runs/a, data.csv, 3/4, https://pytorch.org/docs/'
    """
    return ABSOLUTE.sub(r"\1", text.replace(f"{Path.cwd()}/", ""))


def processor() -> str:
    """The name of the processor's model, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (model := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        return model[1]
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the package's own checkout; None outside of one.

    Where the package or the configs were changed since, with "+" and eight digits of the changes'
    hash.
    """
    folder = Path(__file__).parent
    package = folder.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            errors="replace",
            timeout=10,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", "__init__.py"):
            return None
        added = git("ls-files", "-z", "--others", "--exclude-standard", f"{package}/*.py")
        texts = [(folder / p).read_text(errors="replace") for p in added.split("\0") if p]
        others = [path.format(package.parent) for path in OTHERS]
        changed = git("diff", "HEAD", "--", str(package), *others)
        changes = "".join([changed, *texts])
        digest = f"+{sha256(changes.encode()).hexdigest()[:8]}" if changes else ""
        return git("rev-parse", "HEAD") + digest
    except (OSError, subprocess.TimeoutExpired):
        return None
