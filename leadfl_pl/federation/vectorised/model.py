"""Many clients as one: their parameters stacked into (m, ...), their steps taken at once.

Letters: m clients in a stack, each a row of every tensor; B examples in a batch, T tasks of an
attack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap


class Piece(NamedTuple):
    """Batches of equal size of successive rows."""

    task: int  # 0 .. T - 1
    start: int  # the first row
    x: Tensor  # (m, B, C, H, W)
    y: Tensor  # (m, B)

    @property
    def stop(self) -> int:
        return self.start + len(self.y)


class Losses(NamedTuple):
    """What m rows lose on their batches."""

    losses: Tensor  # (m,)
    grads: list[Tensor]  # (m, ...) each


class StackedModel:
    """m copies of a network's trainable parameters and persistent buffers, one row for each.

    Frozen parameters and buffers outside of the state dict stay shared.

    Args:
        model: the network; it is read now and not changed by training the copies.
        m: how many.
    """

    def __init__(self, model: nn.Module, m: int) -> None:
        def copies(tensor: Tensor) -> Tensor:
            return tensor.detach().expand(m, *tensor.shape).clone()

        self.model = model
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        saved = model.state_dict(keep_vars=True)
        kept = {name: b for name, b in model.named_buffers() if name in saved}
        self._of_module = [*trained.values(), *kept.values()]
        self.names = list(trained)
        self.params = [copies(p) for p in trained.values()]  # (m, ...) each
        self.buffers = {name: copies(b) for name, b in kept.items()}  # (m, ...) each
        self._forward = vmap(self._forward_one)

    def _forward_one(self, params: list[Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        state = dict(zip(self.names, params, strict=True)) | buffers
        logits: Tensor = functional_call(self.model, state, (x,))
        return logits

    def gradients(self, ranges: Sequence[slice], x: Tensor, y: Tensor) -> Losses:
        """Losses (m,) and gradients (m, ...) of m rows on their own batches.

        The rows have nothing in common, so the gradient of the *sum* of their losses with respect
        to the stack is the stack of their gradients: vmap is needed for the forward pass only.

        Args:
            ranges: the rows, end to end; more than one range in a network without buffers only.
            x: (m, B, C, H, W).
            y: (m, B).
        """
        leaves = [pick_rows(p, ranges).requires_grad_() for p in self.params]
        logits = self._forward(leaves, {k: b[ranges[0]] for k, b in self.buffers.items()}, x)
        each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
        losses = each.view(y.shape).mean(dim=1)
        losses.sum().backward(inputs=leaves)
        return Losses(losses.detach(), [_gradient(p) for p in leaves])

    def solve(self, pieces: Sequence[Piece]) -> dict[tuple[int, int], Losses]:
        """Losses and gradients of all pieces, by (task, start), in few passes.

        Pieces of equal shape share a pass. With buffers, a client's tasks go through the network
        one after the other, since each moves them.
        """
        solved: dict[tuple[int, int], Losses] = {}
        in_turn = bool(self.buffers)

        def key(piece: Piece) -> tuple[int, ...]:
            return (piece.task if in_turn else 0, *piece.x.shape[1:])

        for _, alike in groupby(sorted(pieces, key=lambda p: (*key(p), p.task, p.start)), key):
            for group in touching(list(alike)) if in_turn else [list(alike)]:
                x = cat([p.x for p in group])
                y = cat([p.y for p in group])
                losses, grads = self.gradients(merge(group), x, y)
                done = 0
                for piece in group:
                    rows = slice(done, done := done + len(piece.y))
                    solved[piece.task, piece.start] = Losses(losses[rows], [g[rows] for g in grads])
        return solved

    @contextmanager
    def moved(self, rows: slice, params: list[Tensor]) -> Iterator[None]:
        """Some rows have other parameters for the time; their buffers are put back as well."""
        stacks = [s[rows] for s in (*self.params, *self.buffers.values())]
        kept = [s.clone() for s in stacks]
        with torch.no_grad():
            for stack, value in zip(stacks[: len(params)], params, strict=True):
                stack.copy_(value)
        yield
        for stack, value in zip(stacks, kept, strict=True):
            stack.copy_(value)

    def write_row(self, row: int) -> None:
        """Overwrites the network's parameters and buffers with those of one copy."""
        for tensor, stack in zip(
            self._of_module, [*self.params, *self.buffers.values()], strict=True
        ):
            tensor.detach().copy_(stack[row])


def pick_rows(stack: Tensor, ranges: Sequence[slice]) -> Tensor:
    """The rows of these ranges, end to end; a view if there is one range."""
    return cat([stack[r] for r in ranges])


def cat(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def touching(pieces: Sequence[Any]) -> list[list[Any]]:
    """Cuts a sorted list of rows start .. stop - 1 wherever a row is left out."""
    groups: list[list[Any]] = []
    for piece in pieces:
        if groups and groups[-1][-1].stop == piece.start:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def merge(pieces: list[Piece]) -> list[slice]:
    return [slice(g[0].start, g[-1].stop) for g in touching(pieces)]


def sgd_(
    params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], lr: float, momentum: float
) -> None:
    """One step of ``torch.optim.SGD``, in place; ``momenta`` start as zeros, unused without one.

    >>> w, m = [torch.tensor([1.0])], [torch.tensor([0.0])]
    >>> sgd_(w, [torch.tensor([1.0])], m, lr=0.1, momentum=0.5)
    >>> sgd_(w, [torch.tensor([1.0])], m, lr=0.1, momentum=0.5)
    >>> w, m  # 1 - 0.1 - 0.1 * 1.5
    ([tensor([0.7500])], [tensor([1.5000])])
    """
    if momentum:
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, grads)
        grads = momenta
    torch._foreach_add_(params, grads, alpha=-lr)
