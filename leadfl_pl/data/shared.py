"""One copy of the data for all the CPU processes of a node."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def share(tensors: Sequence[Tensor], trainer: Trainer) -> list[Tensor]:
    """The same tensors, in memory that the processes of this node share.

    The first process of each node writes a file, all of them map it, and it is unlinked at once:
    the memory lives as long as a process that uses it. With one process nothing is done. To be
    called by all processes.

    Args:
        tensors: equal on all processes, on the CPU.
        trainer: whose processes.
    """
    strategy = trainer.strategy
    if trainer.world_size == 1:
        return list(tensors)
    token = strategy.broadcast(secrets.token_hex(8), src=0)
    path = Path(tempfile.gettempdir()) / f"leadfl_pl-{token}-{trainer.node_rank}"
    is_first = trainer.local_rank == 0
    try:
        if is_first:
            write(path, tensors)
        strategy.barrier("data written")
        shared = read(path, tensors)
        strategy.barrier("data mapped")
    finally:
        if is_first:
            path.unlink(missing_ok=True)
    return shared


def write(path: Path, tensors: Sequence[Tensor]) -> None:
    """Writes the tensors to ``path``, one after the other."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        for tensor in tensors:
            file.write(tensor.contiguous().numpy().tobytes())
            file.write(bytes(-file.tell() % 8))  # so that every tensor starts at its alignment


def read(path: Path, like: Sequence[Tensor]) -> list[Tensor]:
    """Maps what :func:`write` wrote, given the shapes and dtypes."""
    size = path.stat().st_size
    everything = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
    tensors, offset = [], 0
    for tensor in like:
        length = tensor.numel() * tensor.element_size()
        part = everything[offset : offset + length]
        tensors.append(part.view(tensor.dtype).view(tensor.shape))
        offset += length + -length % 8
    return tensors
