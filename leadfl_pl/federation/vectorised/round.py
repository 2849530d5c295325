"""The local training of one round, for all clients of a rank at once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from leadfl_pl.attacks import Attack
from leadfl_pl.attacks.base import overrides
from leadfl_pl.core.rng import seed_all
from leadfl_pl.core.values import LocalStep
from leadfl_pl.data import ImageSet
from leadfl_pl.data.base import as_float
from leadfl_pl.defenses import ClientDefense
from leadfl_pl.federation.vectorised.groups import (
    AttackGroup,
    Block,
    Share,
    attack_groups,
    on_stacks,
)
from leadfl_pl.federation.vectorised.model import Losses, Piece, StackedModel, cat, sgd_, touching


class Member(NamedTuple):
    """A client of the round, a row of the stack."""

    position: int  # in the cohort
    client_id: int
    part: Tensor  # (N,) its examples in the training set
    defense: ClientDefense
    attack: Attack | None  # of a malicious client
    order: torch.Generator  # of its examples in an epoch (CPU)
    noise: torch.Generator  # of its defense
    seed: int  # of the global generators while code runs that was written for one client


class Settings(NamedTuple):
    """How long and with what the members train."""

    data: ImageSet  # the training set, on the device
    batch_size: int
    epochs: int | None
    steps: int | None  # in place of epochs
    lr: float
    momentum: float
    convert: Callable[[tuple[Tensor, Tensor]], Any]  # a batch to the Trainer's precision
    initial: list[Tensor] | None  # W_0 of the run, for a defense that needs it


class VectorisedRound:
    """Stacks the members and trains them.

    Epochs begin together. In step j of an epoch, rows of equal batch size share a pass through
    the network; nothing is padded, and a client that has finished is left out.

    Args:
        model: with the global weights, which stay as they are.
        members: honest ones first, each kind in the order of size, so that rows which act alike
            are neighbours.
        momenta: (m,) carried from an earlier round, for each member, None without.
        settings: see :class:`Settings`.
    """

    def __init__(
        self,
        model: nn.Module,
        members: Sequence[Member],
        momenta: Sequence[Tensor | None],
        settings: Settings,
    ) -> None:
        self.members, self.settings = members, settings
        self.stack = StackedModel(model, len(members))
        params = self.stack.params
        self.momenta = [torch.zeros_like(p) for p in params] if settings.momentum else []
        for row, carried in enumerate(momenta):
            if carried is not None and self.momenta:
                parts = carried.split([p[0].numel() for p in params])
                for stack, part in zip(self.momenta, parts, strict=True):
                    stack[row] = part.view_as(stack[row])
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.loss_sum = torch.zeros(len(members), dtype=wide, device=params[0].device)
        self._rng: list[tuple[Any, ...] | None] = [None] * len(members)
        honest = sum(m.attack is None for m in members)
        attacks = [m.attack for m in members if m.attack is not None]
        self._groups: list[AttackGroup | None] = [None] * honest  # by row
        for group in attack_groups(attacks, honest, self.alone):
            self._groups += [group] * (group.stop - group.start)
        self.blocks = self._make_blocks()

    def _make_blocks(self) -> list[Block]:
        settings = self.settings

        def key(row: int) -> tuple[bool, int, int | None]:
            member = self.members[row]
            length = max(1, -(-len(member.part) // settings.batch_size))
            constrains = member.attack and overrides(member.attack, "constrain")
            return member.attack is not None, length, id(member.attack) if constrains else None

        blocks = []
        for (malicious, length, _), rows in itertools.groupby(range(len(self.members)), key):
            first, *rest = rows
            limit = settings.steps or length * (settings.epochs or 1)
            block = Block(first, first + len(rest) + 1, malicious, length, limit)
            block.defense = on_stacks(self.members[first].defense, self.alone, first)
            params = [p[block.start : block.stop] for p in self.stack.params]
            block.state = block.defense.start(self.stack.names, params)
            blocks.append(block)
        return blocks

    # ------------------------------------------------------------------ training

    def train(self) -> None:
        """All local steps of all members."""
        for epoch in itertools.count():
            active = [b for b in self.blocks if b.takes(epoch, 0)]
            if not active:
                return
            batches = self._draw_batches(active)
            for j in range(max(b.length for b in active)):
                stepping = [b for b in active if b.takes(epoch, j)]
                for span in touching(stepping):
                    self.step(span, epoch, j, {r: b[j] for r, b in batches.items() if j < len(b)})

    def _draw_batches(self, blocks: list[Block]) -> dict[int, tuple[Tensor, ...]]:
        """One epoch of every row: the examples of its batches, on the device, in one transfer."""
        rows = [row for b in blocks for row in range(b.start, b.stop)]
        orders = []
        for row in rows:
            part = self.members[row].part
            orders.append(part[torch.randperm(len(part), generator=self.members[row].order)])
        drawn = torch.cat(orders).to(self.settings.data.labels.device)
        parts = drawn.split([len(order) for order in orders])
        return {
            row: part.split(self.settings.batch_size) for row, part in zip(rows, parts, strict=True)
        }

    def step(self, span: list[Block], epoch: int, j: int, index: dict[int, Tensor]) -> None:
        """One local step of successive blocks. No host synchronisation.

        Args:
            span: the blocks.
            epoch, j: step j of this local epoch.
            index: for each row the examples (B,) of its batch.
        """
        start, stop = span[0].start, span[-1].stop
        losses, grads = self._gradients(start, stop, index)
        with torch.no_grad():
            self.loss_sum[start:stop] += losses
            self._update(slice(start, stop), grads)
            for block in span:
                mine = [g[block.start - start : block.stop - start] for g in grads]
                self._defend(block, epoch, j, mine, index)

    def _gradients(self, start: int, stop: int, index: dict[int, Tensor]) -> Losses:
        """What rows start .. stop - 1 lose on their batches."""
        pieces, shares = self._pieces(start, stop, index)
        solved = self.stack.solve(pieces)
        with torch.no_grad():
            rows = [share.combine(solved) for share in shares]
            grads = [cat(list(parts)) for parts in zip(*(r.grads for r in rows), strict=True)]
            return Losses(cat([r.losses for r in rows]), grads)

    def _pieces(
        self, start: int, stop: int, index: dict[int, Tensor]
    ) -> tuple[list[Piece], list[Share]]:
        """The batches of rows start .. stop - 1, and what to make of the gradients on them."""
        pieces: list[Piece] = []
        shares: list[Share] = []

        def key(row: int) -> tuple[AttackGroup | None, int]:
            return self._groups[row], len(index[row])

        for (group, _), rows in itertools.groupby(range(start, stop), key):
            first, *rest = rows
            rows_shared = slice(first, first + len(rest) + 1)
            chosen = torch.stack([index[row] for row in (first, *rest)])  # (m, B)
            images, labels = self.settings.data
            x, y = self.settings.convert((as_float(images[chosen]), labels[chosen]))
            tasks = [(x, y)] if group is None else group.tasks(rows_shared, x, y)
            pieces += [Piece(k, first, *task) for k, task in enumerate(tasks)]
            shares.append(Share(rows_shared, group, len(tasks)))
        return pieces, shares

    def _update(self, rows: slice, grads: list[Tensor]) -> None:
        params, momenta = ([s[rows] for s in stack] for stack in (self.stack.params, self.momenta))
        sgd_(params, grads, momenta, self.settings.lr, self.settings.momentum)

    def _defend(
        self, block: Block, epoch: int, j: int, grads: list[Tensor], index: dict[int, Tensor]
    ) -> None:
        rows = slice(block.start, block.stop)

        def optimizer_step(i: int | None = None) -> None:
            """Of the whole block, or of its row i alone."""
            some = slice(None) if i is None else slice(i, i + 1)
            self._update(block.rows(i), [g[some] for g in grads])

        def gradient_at(params: list[Tensor], i: int | None = None) -> list[Tensor]:
            some = block.rows(i)
            with self.stack.moved(some, params), torch.enable_grad():
                found = self._gradients(some.start, some.stop, index).grads
            return found if i is None else [g[0] for g in found]

        generators = [m.noise for m in self.members[rows]]
        step = LocalStep(
            names=self.stack.names,
            params=[p[rows] for p in self.stack.params],
            grads=grads,
            lr=self.settings.lr,
            step=epoch * block.length + j,
            num_steps=block.limit,
            epoch_start=j == 0,
            optimizer_step=optimizer_step,
            generator=generators[0],
            generators=generators,
            initial=self.settings.initial,
            gradient_at=gradient_at,
        )
        block.state = block.defense.after_step(step, block.state)

    # ------------------------------------------------------------------ code for one client

    @contextmanager
    def alone(self, row: int) -> Iterator[None]:
        """The global generators are those of this row's client, as in sequential execution."""
        device = self.stack.params[0].device
        module = torch if device.type == "cpu" else torch.get_device_module(device)
        if (states := self._rng[row]) is None:
            seed_all(self.members[row].seed)
        else:
            on_cpu, on_device, of_numpy, of_python = states
            torch.set_rng_state(on_cpu)
            module.set_rng_state(on_device)
            np.random.set_state(of_numpy)
            random.setstate(of_python)
        yield
        self._rng[row] = (
            torch.get_rng_state(), module.get_rng_state(), np.random.get_state(), random.getstate()
        )  # fmt: skip
