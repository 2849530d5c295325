"""Defenses and attacks on a stack of clients, those written for one client included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leadfl_pl.attacks.backdoor import Backdoor
from leadfl_pl.attacks.base import Attack, Task, carrier
from leadfl_pl.core.values import LocalStep
from leadfl_pl.defenses import ClientDefense
from leadfl_pl.defenses.base import per_client
from leadfl_pl.federation.vectorised.model import Losses

Alone = Callable[[int], AbstractContextManager[None]]  # row -> while this client's own code runs


def fits(owner: object, *methods: str) -> bool:
    """Whether these methods bear the mark of :func:`~leadfl_pl.takes_stacks`."""
    return all(getattr(getattr(owner, m), "takes_stacks", False) for m in methods)


class OneByOne:
    """A defense written for one client, applied to the rows of a stack one after the other.

    Args:
        defense: its ``start``, ``after_step`` and ``regulariser`` see one client's tensors.
        alone: entered while the code of one row runs.
        first: the stack's number of this defense's first row.
    """

    def __init__(self, defense: ClientDefense, alone: Alone, first: int) -> None:
        self.defense, self.alone, self.first = defense, alone, first

    def start(self, names: Sequence[str], params: list[Tensor]) -> list[Any]:
        states = []
        for i in range(len(params[0])):
            with self.alone(self.first + i):
                states.append(self.defense.start(names, [p[i] for p in params]))
        return states

    def after_step(self, step: LocalStep, state: list[Any]) -> list[Any]:
        """``step.optimizer_step`` and ``step.gradient_at`` take a row here."""
        states = []
        for i, one_state in enumerate(state):
            one = step._replace(
                params=[p[i] for p in step.params],
                grads=[g[i] for g in step.grads],
                optimizer_step=lambda i=i: step.optimizer_step(i),  # type: ignore[misc,call-arg]
                generator=step.generators[i],
                generators=(),
                gradient_at=lambda params, i=i: step.gradient_at(params, i),  # type: ignore[misc,call-arg]
            )
            with self.alone(self.first + i):
                states.append(self.defense.after_step(one, one_state))
        return states

    def regulariser(self, state: list[Any]) -> Tensor | None:
        penalties = []
        for i, one in enumerate(state):
            with self.alone(self.first + i):
                penalties.append(self.defense.regulariser(one))
        some = next((p for p in penalties if p is not None), None)
        if some is None:
            return None
        return torch.stack([torch.zeros_like(some) if p is None else p for p in penalties])


def on_stacks(defense: ClientDefense, alone: Alone, first: int) -> ClientDefense | OneByOne:
    """The defense itself if all its methods take stacks, otherwise :class:`OneByOne`."""
    fit = fits(defense, "start", "after_step", "regulariser")
    return defense if fit else OneByOne(defense, alone, first)


class Block:
    """Successive rows of one kind that take equally many steps an epoch, with their defense."""

    def __init__(self, start: int, stop: int, malicious: bool, length: int, limit: int) -> None:
        self.start, self.stop, self.malicious = start, stop, malicious
        self.length = length  # steps an epoch
        self.limit = limit  # steps in the round
        self.defense: ClientDefense | OneByOne = ClientDefense()
        self.state: Any = None

    def rows(self, i: int | None = None) -> slice:
        """All of its rows, or its row i alone."""
        first = self.start + (i or 0)
        return slice(first, self.stop if i is None else first + 1)

    def takes(self, epoch: int, j: int) -> bool:
        """Whether there is a step j in this epoch."""
        return j < self.length and epoch * self.length + j < self.limit


class AttackGroup:
    """Successive malicious rows whose attacks make and balance their tasks in one call.

    Args:
        start: the first row.
        attacks: of m rows; one only if it does not take stacks.
        alone: entered while code of one row runs.
    """

    def __init__(self, start: int, attacks: list[Attack], alone: Alone) -> None:
        self.start, self.stop = start, start + len(attacks)
        self.attacks, self.alone = attacks, alone

    def tasks(self, rows: slice, x: Tensor, y: Tensor) -> list[Task]:
        """The tasks, (m, B, C, H, W) and (m, B) each, of some of its rows on their batches."""
        attack = self.attacks[rows.start - self.start]
        if _fit(attack):
            made = attack.tasks(x.flatten(0, 1), y.flatten())
            return [(u.unflatten(0, y.shape), v.unflatten(0, y.shape)) for u, v in made]
        with self.alone(rows.start):
            return [(u[None], v[None]) for u, v in attack.tasks(x[0], y[0])]

    def combine(
        self, rows: slice, losses: Tensor, gradients: list[list[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """The balanced losses (m,) and the projected gradients (m, ...) of some of its rows.

        Args:
            losses: (T, m).
            gradients: T times the gradients, (m, ...) each.
        """
        attack = self.attacks[rows.start - self.start]
        if _fit(attack):
            weights = attack.balance(losses, gradients)
        else:
            with self.alone(rows.start):
                one = [[g[0] for g in gradient] for gradient in gradients]
                weights = attack.balance(losses[:, 0], one)[:, None]
        total: list[Tensor] = []
        for weight, gradient in zip(weights, gradients, strict=True):
            part = torch._foreach_mul(gradient, [per_client(weight, g) for g in gradient])
            torch._foreach_add_(total, part) if total else total.extend(part)
        return (weights * losses).sum(dim=0), self._project(rows, total)

    def _project(self, rows: slice, total: list[Tensor]) -> list[Tensor]:
        attacks = self.attacks[rows.start - self.start : rows.stop - self.start]
        carriers = {id(carrier(attack, "project")) for attack in attacks}
        if len(carriers) == 1 and fits(carrier(attacks[0], "project"), "project"):
            return attacks[0].project(total)
        projected = []
        for i, attack in enumerate(attacks):
            with self.alone(rows.start + i):
                projected.append(attack.project([t[i] for t in total]))
        return [torch.stack(parts) for parts in zip(*projected, strict=True)]


class Share(NamedTuple):
    """Rows of equal batch size: honest ones, or those of an attack group."""

    rows: slice
    group: AttackGroup | None
    num_tasks: int  # T

    def combine(self, solved: dict[tuple[int, int], Losses]) -> Losses:
        """The losses and gradients of the local step, given those of the tasks."""
        tasks = [solved[k, self.rows.start] for k in range(self.num_tasks)]
        if self.group is None:
            return tasks[0]
        losses = torch.stack([t.losses for t in tasks])
        return Losses(*self.group.combine(self.rows, losses, [t.grads for t in tasks]))


def _fit(attack: Attack) -> bool:
    owner = carrier(attack, "tasks")
    stamping = carrier(getattr(owner, "attack", owner), "trigger")  # DataPoisoning's is another's
    if isinstance(stamping, Backdoor) and type(stamping).trigger is Backdoor.trigger:
        stamps = fits(stamping, "stamp")
    else:
        stamps = stamping is owner or fits(stamping, "trigger")
    return stamps and fits(owner, "tasks") and fits(carrier(attack, "balance"), "balance")


def attack_groups(attacks: Sequence[Attack], first: int, alone: Alone) -> list[AttackGroup]:
    """The malicious rows from ``first`` on, in as few groups as their attacks allow."""

    def key(numbered: tuple[int, Attack]) -> tuple[Any, ...]:
        i, attack = numbered
        if not _fit(attack):
            return ("alone", i)
        return ("together", *(id(carrier(attack, m)) for m in ("tasks", "balance")))

    groups: list[AttackGroup] = []
    for _, group in groupby(enumerate(attacks), key):
        members = list(group)
        groups.append(AttackGroup(first + members[0][0], [a for _, a in members], alone))
    return groups
