"""Which GPU a process has for its runs of an experiment."""

from __future__ import annotations

import fcntl
import os
import tempfile
from itertools import count
from pathlib import Path
from typing import TextIO

import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
_HELD: list[TextIO] = []  # as long as this process lives


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    names = os.environ.get(VISIBLE)
    if names is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name for name in names.split(",") if name]


def take_gpu() -> None:
    """Leaves this process one of several GPUs, one that fewest of the user's experiments have.

    A file's lock says that a GPU is taken. It has to be called before anything uses CUDA.
    """
    gpus = visible_gpus()
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
