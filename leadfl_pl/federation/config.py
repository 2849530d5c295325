"""The settings of a federation, and their check."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.aggregators.base import require_rule
from leadfl_pl.attacks import Attack
from leadfl_pl.attacks.checks import check_layers
from leadfl_pl.core.errors import (
    LARGEST,
    ConfigError,
    errors_of,
    require_choice,
    require_number,
    require_override,
)
from leadfl_pl.core.rng import MAX_SEED
from leadfl_pl.core.values import Cohort, Population
from leadfl_pl.core.vector import DistanceSpace
from leadfl_pl.schedules import Schedule, check_cohort

PATH = "trainer.federation"
LEAST = {  # of the whole numbers
    "num_clients": 1,
    "num_malicious": 0,
    "clients_per_round": 1,
    "local_epochs": 1,
    "local_steps": 1,
    "max_failures": 0,
    "seed": 0,
}


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
        distance_space: what rules measure distances on, see :mod:`leadfl_pl.core.vector`;
            ``"state"`` is what the released LeadFL code does. It is for rules that select: FLAME,
            WeakDP, CRFL, FLTrust, SparseFed and others would clip, scale or add noise to
            BatchNorm's counters as well.
        carry_momentum: each client's optimizer keeps its momentum from round to round, as in the
            released LeadFL code, instead of starting from zero. Those of all clients that ever
            took part are kept on the CPU and in the checkpoint: K x d numbers at most.
        execution: ``"sequential"`` trains a round's clients one after the other, ``"vectorised"``
            all of a rank's at once, with the same result up to rounding; it is faster on small
            networks and needs n times the memory. ``"auto"`` measures both before round 0.
        start_from: a checkpoint whose weights, and nothing else of it, round 0 starts from: of a
            clean run, so that the first burst meets a trained model.
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
    distance_space: DistanceSpace = "params"
    carry_momentum: bool = False
    execution: Literal["sequential", "vectorised", "auto"] = "sequential"
    start_from: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))

    def check(self) -> None:
        """Raises :class:`ConfigError` unless every round of this federation can be run."""
        for key, least in LEAST.items():
            value = getattr(self, key)
            if value is not None or key not in ("local_epochs", "local_steps", "seed"):
                most = MAX_SEED if key == "seed" else LARGEST
                require_number(PATH, key, value, least=least, most=most, whole=True)
        require_number(PATH, "server_lr", self.server_lr, above=0)
        k, n = self.num_clients, self.clients_per_round
        for key in ("clients_per_round", "num_malicious"):
            if (value := getattr(self, key)) > k:
                raise ConfigError(f"{PATH}.{key} must be <= num_clients = {k}, got {key} = {value}")
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ConfigError(
                f"{PATH} needs either local_epochs or local_steps, the other one null, "
                f"got local_epochs = {self.local_epochs} and local_steps = {self.local_steps}"
            )
        require_choice(PATH, "distance_space", self.distance_space, ("params", "state"))
        require_choice(PATH, "execution", self.execution, ("sequential", "vectorised", "auto"))
        if self.attack is not None:
            require_override(f"{PATH}.attack", self.attack, Attack)
            check_layers(self.attack, f"{PATH}.attack")
        require_override(f"{PATH}.schedule", self.schedule, Schedule)
        require_rule(f"{PATH}.aggregator", self.aggregator)
        with errors_of(f"{type(self.schedule).__name__}.check"):
            self.schedule.check(self.population)
        with errors_of(f"{type(self.aggregator).__name__}.check"):
            self.aggregator.check(n)
        self.cohort(0)

    @property
    def population(self) -> Population:
        """What the schedule draws from."""
        assert self.seed is not None  # since __post_init__
        return Population(self.num_clients, self.num_malicious, self.clients_per_round, self.seed)

    def cohort(self, round: int) -> Cohort:
        """The clients of round ``round``, counted from 0."""
        with errors_of(f"{type(self.schedule).__name__}, asked for round {round},"):
            cohort = self.schedule.cohort(self.population, round)
            check_cohort(self.schedule, cohort, self.population, round)
        # NumPy's would spoil checkpoints
        return Cohort(round, tuple(map(int, cohort.client_ids)), tuple(map(bool, cohort.malicious)))

    def local_step_count(self, num_examples: int, batch_size: int) -> int:
        """I, how many local steps a client with so many examples takes in a round."""
        if self.local_steps is not None:
            return self.local_steps
        assert self.local_epochs is not None
        return self.local_epochs * -(-num_examples // batch_size)
