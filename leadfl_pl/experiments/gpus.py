"""Which GPU a process has for its runs of an experiment."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TextIO

import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
_HELD: list[TextIO] = []  # as long as this process lives


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    there = torch.cuda.device_count()  # CUDA takes those before the first that is not there
    names = os.environ.get(VISIBLE)
    return [str(i) for i in range(there)] if names is None else names.split(",")[:there]


def take_gpu(gpus: Sequence[str]) -> None:
    """Restricts this process to one of several GPUs, before it uses CUDA.

    The first that no process of the user's experiments has; if all are taken, the first that only
    one has, and so on. The lock of a file says that one is taken.
    """
    if len(gpus) < 2:
        return
    for place in count():
        others, gpu = divmod(place, len(gpus))
        name = f"leadfl_pl-{os.getuid()}-gpu-{gpus[gpu]}-{others}"
        file = Path(tempfile.gettempdir(), name).open("w")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _HELD.append(file)
        os.environ[VISIBLE] = gpus[gpu]
        return
