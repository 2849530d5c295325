"""What an attack can do: to a malicious client's data, and to the updates of a round."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from leadfl_pl.core.errors import ConfigError, require_tensor
from leadfl_pl.core.values import AttackerView, takes_stacks

Task = tuple[Tensor, Tensor]  # images (B, C, H, W) in the scale the data module gives, labels (B,)
Triggered = tuple[Tensor, Tensor, Tensor]  # images, labels the attacker wants, which count (B,)


class Attack:
    """What the malicious clients do. The base class attacks nothing.

    A malicious client trains on one or several *tasks* made of its batch; their gradients are
    summed with :meth:`balance`, and :meth:`project` has the last word on the sum; after the step,
    :meth:`constrain` has it on the parameters. What differs between the malicious clients, or from
    round to round, is decided by :meth:`local`. An attack on updates overrides :meth:`corrupt`. An
    attack that plants a backdoor overrides :meth:`trigger`, which evaluation uses. One that learns
    from round to round does so in :meth:`adapt`; checkpoints have its :meth:`state_dict`.

    With the mark of :func:`~leadfl_pl.takes_stacks`, :meth:`tasks` treats every example by
    itself and is given several clients' batches end to end; :meth:`balance` is given losses (T, m)
    and gradients (m, ...) of m clients, and returns weights (T, m); :meth:`project` is given
    gradients (m, ...).
    """

    holds_back = False  #: trains honestly in some rounds, so that nothing may be around it then

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        """Raises :class:`~leadfl_pl.ConfigError` if it does not fit images (C, H, W)."""

    def adapt(self, view: AttackerView) -> None:
        """Changes the attack's state, once in a round with attackers, before any client trains.

        ``view`` is that of the first of them. Every process calls it, and then has the state of the
        first process.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`adapt` changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the state that :meth:`state_dict` gave; an empty one is that of a new run."""

    def local(self, view: AttackerView) -> Attack:
        """The attack as one malicious client carries it out in one round."""
        return self

    @takes_stacks
    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        """The batches that a malicious client takes its gradient from, given its batch."""
        return [(x, y)]

    @takes_stacks
    def balance(self, losses: Tensor, gradients: list[list[Tensor]]) -> Tensor:
        """Weights (T,) of the T tasks; ``gradients[k]`` are those of task k, ``losses`` is (T,)."""
        return torch.ones_like(losses)

    @takes_stacks
    def project(self, gradients: list[Tensor]) -> list[Tensor]:
        """The gradient of the local step, given the weighted sum over the tasks."""
        return gradients

    def constrain(
        self, params: list[Tensor], start: list[Tensor], step: int, num_steps: int
    ) -> None:
        """Changes ``params`` in place after local step ``step``, from 0 to ``num_steps`` - 1.

        ``start`` are those of the global model. A defense that the attacker runs comes before it.
        """

    def corrupt(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Tensor:
        """The updates (n, d) that the server receives; ``malicious`` is a mask (n,), not empty.

        The attackers of a round know each other's updates. Which of the honest ones they look at
        is for the attack to say. All ``updates`` are finite.
        """
        return updates

    def trigger(self, x: Tensor, y: Tensor) -> Triggered | None:
        """Triggered images, the labels the attacker wants, and which of them count (B,).

        None for an attack without a backdoor.
        """
        return None


class AttackWrapper(Attack):
    """Another attack with something added; everything that is not overridden is the other's.

    >>> class Doubled(AttackWrapper):
    ...     def corrupt(self, updates, malicious, generator):
    ...         sent = super().corrupt(updates, malicious, generator)
    ...         return torch.where(malicious[:, None], 2 * sent, sent)
    >>> updates, rng = torch.ones(2, 3), torch.Generator()
    >>> Doubled().corrupt(updates, torch.tensor([True, False]), rng)
    tensor([[2., 2., 2.],
            [1., 1., 1.]])

    Args:
        attack: what the malicious clients do besides; honest local training if not given.
    """

    def __init__(self, attack: Attack | None = None) -> None:
        self.attack = attack or Attack()

    def check(self, image_shape: Sequence[int], num_classes: int) -> None:
        self.attack.check(image_shape, num_classes)

    def adapt(self, view: AttackerView) -> None:
        self.attack.adapt(view)

    def state_dict(self) -> dict[str, Any]:
        return self.attack.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.attack.load_state_dict(state)

    def local(self, view: AttackerView) -> Attack:
        inner = self.attack.local(view)
        if inner is self.attack:
            return self
        local = copy.copy(self)
        local.attack = inner
        return local

    def tasks(self, x: Tensor, y: Tensor) -> list[Task]:
        return self.attack.tasks(x, y)

    def balance(self, losses: Tensor, gradients: list[list[Tensor]]) -> Tensor:
        return self.attack.balance(losses, gradients)

    def project(self, gradients: list[Tensor]) -> list[Tensor]:
        return self.attack.project(gradients)

    def constrain(
        self, params: list[Tensor], start: list[Tensor], step: int, num_steps: int
    ) -> None:
        self.attack.constrain(params, start, step, num_steps)

    def corrupt(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Tensor:
        return self.attack.corrupt(updates, malicious, generator)

    def trigger(self, x: Tensor, y: Tensor) -> Triggered | None:
        return self.attack.trigger(x, y)


def reference_updates(updates: Tensor, malicious: Tensor, omniscient: bool) -> Tensor:
    """The updates (r, d) from which attackers learn what honest ones look like.

    The honest ones for an omniscient attacker; those of the attackers, as their local training gave
    them, for one who is not, and in a round without honest clients.
    """
    honest = ~malicious
    return updates[honest if omniscient and bool(honest.any()) else malicious]


def overrides(attack: Attack, method: str) -> bool:
    """Whether the attack, or one that it wraps, overrides ``method``."""
    return getattr(type(carrier(attack, method)), method) is not getattr(Attack, method)


def carrier(attack: Attack, method: str) -> Attack:
    """The attack, or the one that it wraps, whose ``method`` is called in the end."""
    function = getattr(type(attack), method)
    if isinstance(attack, AttackWrapper) and function is getattr(AttackWrapper, method):
        return carrier(attack.attack, method)
    return attack


def require_class(attack: Attack, key: str, value: int, num_classes: int) -> None:
    """Raises :class:`ConfigError` unless ``value`` is one of the data's classes."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= value < num_classes:
        raise ConfigError(
            f"{type(attack).__name__}: {key} must be a class in 0 .. {num_classes - 1}, "
            f"got {key} = {value}"
        )


class CraftedUpdates(AttackWrapper):
    """Base of the attacks whose updates are made from what honest clients send.

    What the attackers' local training gave is not sent; a non-omniscient attacker estimates the
    honest updates from it.

    Args:
        attack: on the data of the malicious clients; honest local training if not given.
        omniscient: the attackers know the honest updates of the round; otherwise only theirs.

    Raises:
        ConfigError: ``attack`` corrupts updates itself, which would be lost.
    """

    def __init__(self, attack: Attack | None = None, omniscient: bool = True) -> None:
        super().__init__(attack)
        if overrides(self.attack, "corrupt"):
            raise ConfigError(
                f"{type(self).__name__}: attack must be an attack on data, because its updates "
                f"are replaced, got attack = {type(self.attack).__name__}"
            )
        self.omniscient = omniscient

    def craft(
        self, reference: Tensor, n: int, num_malicious: int, generator: torch.Generator
    ) -> Tensor:
        """What is sent, (d,) if all attackers send the same, else (num_malicious, d).

        ``reference`` (r, d) are the updates that stand for the honest ones, n counts the updates
        of the round.
        """
        raise NotImplementedError(f"{type(self).__name__} must define craft()")

    def corrupt(self, updates: Tensor, malicious: Tensor, generator: torch.Generator) -> Tensor:
        reference = reference_updates(updates, malicious, self.omniscient)
        sent, num_malicious = updates.clone(), int(malicious.sum())
        crafted = self.craft(reference, len(updates), num_malicious, generator)
        for_all = updates.shape[1:]
        shape = for_all if getattr(crafted, "ndim", 1) == 1 else (num_malicious, *for_all)
        require_tensor(f"{type(self).__name__}.craft must return", crafted, shape, updates.dtype)
        sent[malicious] = crafted
        return sent
