"""What the server does, as one configuration object."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.aggregators.validation import well_formed
from leadfl_pl.attacks import Attack
from leadfl_pl.core.errors import ConfigError, require_choice
from leadfl_pl.core.rng import generator
from leadfl_pl.core.values import ClientUpdate, Cohort, Population, ServerContext
from leadfl_pl.core.vector import Measure
from leadfl_pl.metrics import MaliciousSelected
from leadfl_pl.schedules import Schedule


class Aggregate(NamedTuple):
    """What a rule made of a round."""

    delta: Tensor  # (d,) the server's step
    buffers: Tensor | None  # (b,) mean of the selected clients' buffers; None: none was selected
    selected: Tensor  # (m,) positions among the updates that were received


@dataclasses.dataclass
class Federation:
    """Population, schedule, attack, rule and server step.

    Args:
        aggregator: the server-side rule.
        schedule: who takes part in a round.
        attack: of the malicious clients; without one they train like honest clients that run no
            defense.
        num_clients: K.
        num_malicious: how many of them are malicious.
        clients_per_round: n.
        local_epochs: epochs over a client's own data in a round; either this or ``local_steps``.
        local_steps: local steps in a round, going through the client's data as often as needed.
        server_lr: theta <- theta + server_lr * aggregate.
        defended_attackers: malicious clients run the client-side defense as well.
        max_failures: how many rounds in a row may pass without an aggregate, because too few
            well-formed updates came in, before the run stops. Such a round keeps the old model.
        measure: what rules measure distances on, see :mod:`leadfl_pl.core.vector`; ``"state"`` is
            what the released LeadFL code does.
        carry_momentum: each client's optimizer keeps its momentum from round to round, as in the
            released LeadFL code, instead of starting from zero. Those of all clients that ever
            took part are kept on the CPU and in the checkpoint: K x d numbers at most.
        execution: ``"sequential"`` trains a round's clients one after the other, ``"vectorised"``
            all of a rank's at once, with the same result up to rounding; it is faster on small
            networks and needs n times the memory. ``"auto"`` measures both before round 0.
        seed: of every random draw; the value of ``seed_everything`` if not given, 0 without one.
    """

    aggregator: Aggregator
    schedule: Schedule
    attack: Attack | None = None
    num_clients: int = 100
    num_malicious: int = 25
    clients_per_round: int = 10
    local_epochs: int | None = None
    local_steps: int | None = None
    server_lr: float = 1.0
    defended_attackers: bool = False
    max_failures: int = 3
    measure: Measure = "params"
    carry_momentum: bool = False
    execution: Literal["sequential", "vectorised", "auto"] = "sequential"
    seed: int | None = None

    def check(self) -> None:
        """Raises :class:`ConfigError` unless every round of this federation can be run."""
        k, n, m = self.num_clients, self.clients_per_round, self.num_malicious
        if k < 1:
            raise ConfigError(f"trainer.federation.num_clients must be >= 1, got num_clients = {k}")
        for key, value, most, meaning in (
            ("clients_per_round", n, k, "num_clients"),
            ("num_malicious", m, k, "num_clients"),
        ):
            if value > most:
                raise ConfigError(
                    f"trainer.federation.{key} must be <= {meaning} = {most}, got {key} = {value}"
                )
        if n < 1:
            raise ConfigError(
                f"trainer.federation.clients_per_round must be >= 1, got clients_per_round = {n}"
            )
        if m < 0:
            raise ConfigError(
                f"trainer.federation.num_malicious must be >= 0, got num_malicious = {m}"
            )
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ConfigError(
                "trainer.federation needs either local_epochs or local_steps, the other one null, "
                f"got local_epochs = {self.local_epochs} and local_steps = {self.local_steps}"
            )
        for key in ("local_epochs", "local_steps"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ConfigError(f"trainer.federation.{key} must be >= 1, got {key} = {value}")
        if self.max_failures < 0:
            raise ConfigError(
                "trainer.federation.max_failures must be >= 0, "
                f"got max_failures = {self.max_failures}"
            )
        if not 0 < self.server_lr < float("inf"):
            raise ConfigError(
                f"trainer.federation.server_lr must be > 0, got server_lr = {self.server_lr}"
            )
        require_choice("trainer.federation", "measure", self.measure, ("params", "state"))
        require_choice(
            "trainer.federation", "execution", self.execution, ("sequential", "vectorised", "auto")
        )
        if type(self.aggregator).forward is not Aggregator.forward:
            raise ConfigError(
                f"{type(self.aggregator).__name__} must define select() and combine(), which a "
                "federation calls, instead of forward()"
            )
        self.schedule.check(self.population)
        self.aggregator.check(n)

    @property
    def population(self) -> Population:
        """What the schedule draws from."""
        return Population(
            self.num_clients, self.num_malicious, self.clients_per_round, self.seed or 0
        )

    def cohort(self, round: int) -> Cohort:
        """The clients of round ``round``, counted from 0."""
        return self.schedule.cohort(self.population, round)

    def corrupt(self, updates: list[ClientUpdate], cohort: Cohort) -> list[ClientUpdate]:
        """The updates as they are sent, after the attack on updates.

        The attackers are given those of them that are finite.
        """
        if self.attack is None or not any(cohort.malicious):
            return updates
        stacked = torch.stack([u.delta for u in updates])
        malicious = torch.tensor(cohort.malicious, device=stacked.device)
        finite = stacked.isfinite().all(dim=1)
        if not bool((finite & malicious).any()):
            return updates
        rng = generator(self.seed or 0, "attack", cohort.round, device=stacked.device)
        sent = stacked.clone()
        sent[finite] = self.attack.corrupt(stacked[finite], malicious[finite], rng)
        return [u._replace(delta=row) for u, row in zip(updates, sent, strict=True)]

    def receive(
        self, updates: list[ClientUpdate], round: int, d: int, b: int
    ) -> list[ClientUpdate]:
        """The well-formed updates, see :func:`well_formed`."""
        return well_formed(updates, round, d, b)

    def server_context(
        self, round: int, root_update: Tensor | None, device: torch.device
    ) -> ServerContext:
        """What the server itself brings to a round."""
        rng = generator(self.seed or 0, "server", round, device=device)
        return ServerContext(rng, root_update)

    def aggregate(self, updates: list[ClientUpdate], server: ServerContext) -> Aggregate:
        """The rule's update, and the mean of the buffers of the clients it selected.

        Raises:
            ConfigError: these are fewer than the rule needs.
        """
        self.aggregator.check_enough(len(updates), self.clients_per_round)
        deltas = torch.stack([u.delta for u in updates])
        weights = deltas.new_tensor([u.num_examples for u in updates])
        delta, selected = self.aggregator.aggregate(deltas, weights, server)
        buffers = None
        if len(selected):
            buffers = torch.stack([u.buffers for u in updates])[selected].mean(dim=0)
        return Aggregate(self.server_lr * delta, buffers, selected)


def round_metrics(
    aggregate: Aggregate, cohort: Cohort, received: list[ClientUpdate]
) -> dict[str, Tensor]:
    """What is logged of a round, by name; scalars."""
    delta = aggregate.delta
    is_malicious = dict(zip(cohort.client_ids, cohort.malicious, strict=True))
    mask = torch.tensor([is_malicious[u.client_id] for u in received], device=delta.device)
    selected = MaliciousSelected().to(delta.device)(aggregate.selected, mask.bool())
    penalties = [u.regulariser for u in received if not is_malicious[u.client_id]]
    nan = delta.new_tensor(float("nan"))
    return {
        "round/malicious_sampled": delta.new_tensor(sum(cohort.malicious)),
        "round/malicious_selected": selected.float(),
        "round/rejected": delta.new_tensor(len(cohort.client_ids) - len(received)),
        "round/update_norm": torch.linalg.vector_norm(delta),
        "train/loss": torch.stack([u.loss for u in received]).mean() if received else nan,
        "train/regulariser": torch.stack(penalties or [delta.new_zeros(())]).mean(),
    }
