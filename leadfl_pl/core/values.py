"""The values that travel between the layers, and the letters used for shapes everywhere.

Legend: K clients, n of them in a round's cohort, f assumed Byzantine, t round, i local step of I,
eta (``lr``) learning rate, theta in R^d the model's trainable parameters, b its floating-point
buffers (BatchNorm's running statistics), N examples, (C, H, W) an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from leadfl_pl.core.errors import ConfigError

Row = Mapping[str, float]  # one round of a run's record, by column
Method = TypeVar("Method", bound=Callable[..., Any])


def takes_stacks(method: Method) -> Method:
    """Marks a method of a defense or an attack that may be called for m clients at once.

    In vectorised execution its tensors then have a leading client dimension. A method without the
    mark, an override of a marked one included, is called client by client.
    """
    method.takes_stacks = True  # type: ignore[attr-defined]
    return method


class Population(NamedTuple):
    """Who there is to draw from: all that a schedule may know besides the round."""

    num_clients: int  #: K
    num_malicious: int
    clients_per_round: int  #: n
    seed: int


class Cohort(NamedTuple):
    """The clients of one round, in the order in which their updates are stacked."""

    round: int  #: t
    client_ids: tuple[int, ...]  #: n ids in 0 .. K - 1
    malicious: tuple[bool, ...]  #: the truth, for attacks and for metrics, never for a rule

    def mask(self, updates: Sequence[ClientUpdate]) -> list[bool]:
        """Which of the updates are of malicious clients."""
        truth = dict(zip(self.client_ids, self.malicious, strict=True))
        return [truth[update.client_id] for update in updates]


class ClientUpdate(NamedTuple):
    """What one client sends to the server after its local steps."""

    client_id: int
    delta: Tensor  #: (d,) theta_c - theta_t
    buffers: Tensor  #: (b,) floating-point buffers after training
    num_examples: int
    loss: Tensor  #: () mean training loss over the local steps
    regulariser: Tensor  #: () the defense's penalty at the last local step, 0 without one
    momentum: Tensor | None = None  #: (m,) the optimizer's, where a client keeps it between rounds


class ServerContext(NamedTuple):
    """What the server itself brings to a round's aggregation."""

    generator: torch.Generator | None = None  #: on the updates' device; torch's global one if None
    root_update: Tensor | None = None  #: (d,) from the server's own root data set
    model: Tensor | None = None  #: (d,) theta_t, in a federation always given
    clients: Tensor | None = None  #: (n,) int64 whose the updates are, in a federation always given


class AttackerView(NamedTuple):
    """What a malicious client knows when its local training starts."""

    round: int  #: t
    attacker: int  #: its place among the malicious clients, from 0 to num_malicious - 1
    model: nn.Module  #: with the global weights
    images: Tensor  #: (N, C, H, W) its own data
    labels: Tensor  #: (N,)
    last_update: list[Tensor] | None  #: theta_t - theta_{t-1} by trainable parameter; None at t = 0


class LocalStep(NamedTuple):
    """What a client-side defense sees of local step i, right after the optimizer's step.

    ``optimizer_step`` takes one more step of the client's own optimizer on whatever ``.grad``
    then holds (the released LeadFL needs it; most defenses do not).

    ``gradient_at`` gives the gradient of this step's loss, on the same batch, at other parameters.
    It is a second pass through the network, which leaves neither gradients nor buffers behind.

    A method that :func:`takes_stacks` finds m clients' ``params`` and ``grads``, (m, ...) each,
    and their ``generators``; everything else is the same for all of them.
    """

    names: Sequence[str]
    params: list[Tensor]  #: W~_{i+1}; a defense changes them in place
    grads: list[Tensor]  #: g_i; the next backward pass overwrites it, so keep a clone
    lr: float
    step: int  #: i, from 0 in every round
    num_steps: int  #: I, how many local steps this client takes in this round
    epoch_start: bool  #: the first batch of a local epoch
    optimizer_step: Callable[[], object]
    generator: torch.Generator  #: on the parameters' device
    generators: Sequence[torch.Generator] = ()  #: m of them; empty if the step is one client's
    initial: list[Tensor] | None = None  #: W_0 of the whole run, for a defense that needs_initial
    gradient_at: Callable[[list[Tensor]], list[Tensor]] | None = None  #: None in a handmade step


class UncountedStep(LocalStep):
    """A local step of a round whose number of steps nobody knows: asking for it raises."""

    @property
    def num_steps(self) -> int:
        raise ConfigError(
            "num_steps must be the number of local steps that a client takes in a round, for a "
            "defense that asks for it, got num_steps = None (of a Trainer: max_steps)"
        )
