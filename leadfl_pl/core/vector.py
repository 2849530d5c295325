"""A model as vectors: the one place that decides what of it is measured, averaged, or left alone.

================================  =====================  ======================
entry of the model                space ``"params"``     space ``"state"``
================================  =====================  ======================
trainable parameters              in the (d,) vector     in the (d,) vector
floating-point buffers            in the (b,) vector     in the (d,) vector
integer counters                  left alone             in the (d,) vector
frozen parameters                 left alone             in the (d,) vector
================================  =====================  ======================

A tensor that stands in several places is one entry. Buffers that no ``state_dict`` has
(``persistent=False``) are left alone, and stay as the last client leaves them.

Distances between clients are taken on the (d,) vector; the (b,) vector is averaged over the
clients that the rule selected. ``"state"`` is what the released LeadFL code does: BatchNorm's
``num_batches_tracked`` then enters Krum's distances and gives every backdoor client away that
makes two forward passes a step.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

DistanceSpace = Literal["params", "state"]


class Snapshot(NamedTuple):
    """All of a module's state."""

    theta: Tensor  # (d,)
    buffers: Tensor  # (b,)
    kept: list[Tensor]  # counters and frozen parameters


class ModelVector:
    """Reads a module into flat vectors and writes them back, in place.

    Args:
        module: the model; its tensors are looked up once, so it must stay the same object.
        space: which entries form the (d,) vector, see the module's docstring.
    """

    def __init__(self, module: nn.Module, space: DistanceSpace = "params") -> None:
        state = {id(t): t for t in module.state_dict(keep_vars=True).values()}  # tied ones once
        trainable = {id(p) for p in module.parameters() if p.requires_grad}
        measured = [t for t in state.values() if space == "state" or id(t) in trainable]
        rest = [t for t in state.values() if id(t) not in {id(m) for m in measured}]
        self.measured: list[Tensor] = [t.detach() for t in measured]
        self._is_trainable = [id(t) in trainable for t in measured]
        parameters = {id(p) for p in module.parameters()}
        averaged = [t for t in rest if t.is_floating_point() and id(t) not in parameters]
        self.averaged: list[Tensor] = [t.detach() for t in averaged]
        self.kept: list[Tensor] = [
            t.detach() for t in rest if not any(t is other for other in averaged)
        ]
        self.device = next(iter(state.values())).device
        self.dtype = next((t.dtype for t in self.measured if t.is_floating_point()), torch.float32)

    @property
    def d(self) -> int:
        """Length of the measured vector."""
        return sum(t.numel() for t in self.measured)

    @property
    def b(self) -> int:
        """Length of the vector of averaged, unmeasured entries."""
        return sum(t.numel() for t in self.averaged)

    def read(self) -> Tensor:
        """A copy of the measured entries, shape (d,)."""
        return self._flatten(self.measured)

    def write(self, vector: Tensor) -> None:
        """Overwrites the measured entries with ``vector``, shape (d,). Counters are truncated."""
        unflatten(vector, self.measured)

    def trainable(self, vector: Tensor) -> list[Tensor]:
        """The parts of ``vector``, shape (d,), that belong to trainable parameters, in order."""
        parts = vector.split([t.numel() for t in self.measured])
        triples = zip(parts, self.measured, self._is_trainable, strict=True)
        return [part.view_as(t) for part, t, is_trainable in triples if is_trainable]

    def read_buffers(self) -> Tensor:
        """A copy of the averaged, unmeasured entries, shape (b,), possibly empty."""
        return self._flatten(self.averaged)

    def write_buffers(self, vector: Tensor) -> None:
        """Overwrites the averaged, unmeasured entries with ``vector``, shape (b,)."""
        unflatten(vector, self.averaged)

    def snapshot(self) -> Snapshot:
        """A copy of all of the module's state."""
        return Snapshot(self.read(), self.read_buffers(), [t.clone() for t in self.kept])

    def restore(self, snapshot: Snapshot) -> None:
        """Puts back what :meth:`snapshot` gave."""
        self.write(snapshot.theta)
        self.write_buffers(snapshot.buffers)
        for tensor, value in zip(self.kept, snapshot.kept, strict=True):
            tensor.copy_(value)

    def _flatten(self, tensors: list[Tensor]) -> Tensor:
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return torch.cat([empty, *(t.reshape(-1).to(self.dtype) for t in tensors)])


def unflatten(vector: Tensor, tensors: list[Tensor]) -> None:
    """Overwrites tensors, one after the other, with the entries of ``vector``."""
    if vector.numel() != (d := sum(t.numel() for t in tensors)):
        raise ValueError(f"expected a vector of {d} entries, got {vector.numel()}")
    parts = vector.split([t.numel() for t in tensors]) if tensors else ()
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
