"""Which clients take part in a round, and how many of them are malicious."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.rng import generator
from leadfl_pl.core.values import Cohort, Population


class Schedule:
    """Draws the cohort of a round: a pure function of (seed, round).

    A new schedule overrides :meth:`malicious_count`; what it returns is drawn from the malicious
    clients and the rest from the benign ones, both uniformly.
    """

    def malicious_count(self, round: int) -> int | None:
        """How many malicious clients the round has; None leaves it to chance."""
        return None

    def malicious_range(self) -> tuple[int, int] | None:
        """The fewest and the most that :meth:`malicious_count` asks for; None: it never asks."""
        return None

    def draw_malicious(self, population: Population) -> tuple[int, ...]:
        """The ids of the malicious clients, the same in every round."""
        rng = generator(population.seed, "malicious")
        order = torch.randperm(population.num_clients, generator=rng)
        return tuple(sorted(order[: population.num_malicious].tolist()))

    def sample(self, population: Population, round: int, count: int | None) -> list[int]:
        """The ids of the round's clients, ``count`` of them malicious, in a random order."""
        rng = generator(population.seed, "cohort", round)
        n = population.clients_per_round
        order = torch.randperm(population.num_clients, generator=rng).tolist()
        if count is None:
            return order[:n]
        malicious = set(self.draw_malicious(population))
        attackers = [c for c in order if c in malicious][:count]
        benign = [c for c in order if c not in malicious][: n - count]
        picked = attackers + benign
        # their order in ``order`` would tell: the rarer kind comes later in it
        return [picked[i] for i in torch.randperm(n, generator=rng).tolist()]

    def cohort(self, population: Population, round: int) -> Cohort:
        """The clients of round ``round``, counted from 0."""
        malicious = set(self.draw_malicious(population))
        ids = self.sample(population, round, self.malicious_count(round))
        return Cohort(round, tuple(ids), tuple(c in malicious for c in ids))

    def check(self, population: Population) -> None:
        """Raises :class:`ConfigError` if the population cannot fill every round's cohort."""
        k, m, n, _ = population
        if (asked := self.malicious_range()) is None:
            return
        fewest, most = asked
        if most > n:
            raise ConfigError(
                f"{type(self).__name__}: num_malicious must be <= clients_per_round = {n}, "
                f"got num_malicious = {most}"
            )
        if most > m:
            raise ConfigError(
                f"{type(self).__name__}: num_malicious must be <= the population's "
                f"num_malicious = {m}, got num_malicious = {most}"
            )
        if n - fewest > k - m:
            raise ConfigError(
                f"{type(self).__name__} needs {n - fewest} benign clients in a round, but "
                f"num_clients - num_malicious = {k - m}"
            )


class RandomSchedule(Schedule):
    """n of K clients uniformly without replacement; the same seed replays the same cohorts."""


class FixedSchedule(Schedule):
    """Exactly ``num_malicious`` malicious clients in every round.

    Args:
        num_malicious: of the round's cohort, >= 0.
    """

    def __init__(self, num_malicious: int) -> None:
        _require_count(self, num_malicious)
        self.num_malicious = num_malicious

    def malicious_count(self, round: int) -> int:
        return self.num_malicious

    def malicious_range(self) -> tuple[int, int]:
        return self.num_malicious, self.num_malicious


class BurstySchedule(Schedule):
    """Cycles of ``period`` rounds whose first ``burst`` rounds have malicious clients.

    >>> schedule = BurstySchedule(period=5, burst=2, num_malicious=6)
    >>> [schedule.malicious_count(t) for t in range(7)]
    [6, 6, 0, 0, 0, 6, 6]

    Args:
        period: rounds in a cycle.
        burst: rounds at its start with malicious clients, 1 <= burst <= period.
        num_malicious: malicious clients in each of those rounds; the others have none.

    References:
        Report, section III (periodic attack): period 10, burst 2, 6 of 10.
    """

    def __init__(self, period: int = 10, burst: int = 2, num_malicious: int = 6) -> None:
        _require_count(self, num_malicious)
        if not 1 <= burst <= period:
            raise ConfigError(
                f"BurstySchedule: burst must be in 1 .. period = {period}, got burst = {burst}"
            )
        self.period = period
        self.burst = burst
        self.num_malicious = num_malicious

    def malicious_count(self, round: int) -> int:
        return self.num_malicious if round % self.period < self.burst else 0

    def malicious_range(self) -> tuple[int, int]:
        return (0 if self.burst < self.period else self.num_malicious), self.num_malicious


class ForcedRounds(Schedule):
    """Another schedule, with a fixed number of malicious clients in some rounds.

    Args:
        schedule: the schedule of all other rounds; it also does the drawing.
        rounds: the rounds that are forced, counted from 0.
        num_malicious: malicious clients in each of them.

    References:
        github.com/chaoyitud/LeadFL at 06ecc98 forces 5 of 10 in rounds 0, 10 and 12.
    """

    def __init__(self, schedule: Schedule, rounds: Sequence[int], num_malicious: int) -> None:
        _require_count(self, num_malicious)
        self.schedule = schedule
        self.rounds = frozenset(rounds)
        self.num_malicious = num_malicious

    def malicious_count(self, round: int) -> int | None:
        return self.num_malicious if round in self.rounds else self.schedule.malicious_count(round)

    def malicious_range(self) -> tuple[int, int]:
        return self.num_malicious, self.num_malicious

    def draw_malicious(self, population: Population) -> tuple[int, ...]:
        return self.schedule.draw_malicious(population)

    def sample(self, population: Population, round: int, count: int | None) -> list[int]:
        return self.schedule.sample(population, round, count)

    def check(self, population: Population) -> None:
        self.schedule.check(population)
        super().check(population)


class ReleasedSchedule(Schedule):
    """The random selection of the released LeadFL code, draw for draw.

    Malicious clients come from NumPy's seed 0, the cohort of round t from seed t + 100, both on
    ids 1 .. K, which are 0 .. K - 1 here. The experiment's own seed plays no part. A forced round
    draws its benign and then its malicious clients after the round's random ones.

    References:
        github.com/chaoyitud/LeadFL at 06ecc98, ``fltk/core/federator.py``.
    """

    def draw_malicious(self, population: Population) -> tuple[int, ...]:
        state = np.random.RandomState(0)
        drawn = state.choice(population.num_clients, population.num_malicious, replace=False)
        return tuple(sorted(drawn.tolist()))

    def sample(self, population: Population, round: int, count: int | None) -> list[int]:
        state = np.random.RandomState(round + 100)
        n = population.clients_per_round
        drawn = state.choice(population.num_clients, n, replace=False).tolist()
        if count is None:
            return drawn
        malicious = self.draw_malicious(population)
        benign = sorted(set(range(population.num_clients)) - set(malicious))
        picked = state.choice(benign, n - count, replace=False).tolist()
        return picked + state.choice(malicious, count, replace=False).tolist()


def _require_count(schedule: Schedule, num_malicious: int) -> None:
    if num_malicious < 0:
        raise ConfigError(
            f"{type(schedule).__name__}: num_malicious must be >= 0, "
            f"got num_malicious = {num_malicious}"
        )
