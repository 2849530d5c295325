"""Which clients take part in a round, and how many of them are malicious."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch

from leadfl_pl.core.errors import (
    ConfigError,
    require_number,
    require_numbers,
    require_override,
    summarise,
)
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
        """The clients of round ``round``, counted from 0.

        Raises:
            ConfigError: a method of the schedule returned something else than it must.
        """
        k, m, n, _ = population
        name = type(self).__name__
        attackers = self.draw_malicious(population)
        require_clients(f"{name}.draw_malicious", attackers, m, k)
        count = self.malicious_count(round)
        if count is not None:
            key, least, most = f"malicious_count({round})", max(0, n - k + m), min(n, m)
            require_number(name, key, count, least=least, most=most, whole=True)
        ids = self.sample(population, round, count)
        require_clients(f"{name}.sample", ids, n, k)
        malicious = set(attackers)
        is_malicious = tuple(c in malicious for c in ids)
        if count is not None and sum(is_malicious) != count:
            raise ConfigError(
                f"{name}.sample must return {count} malicious clients for round {round}, "
                f"got {sum(is_malicious)}"
            )
        return Cohort(round, tuple(int(c) for c in ids), is_malicious)

    def check(self, population: Population) -> None:
        """Raises :class:`ConfigError` if the population cannot fill every round's cohort."""
        k, m, n, _ = population
        name = type(self).__name__
        if (asked := self.malicious_range()) is None:
            return
        require_numbers(name, "malicious_range()", asked, least=0, length=2)
        fewest, most = asked
        if fewest > most:
            raise ConfigError(
                f"{name}.malicious_range must return the fewest and the most, "
                f"got {fewest} and {most}"
            )
        for limit, key in ((n, "clients_per_round"), (m, "the population's num_malicious")):
            if most > limit:
                raise ConfigError(
                    f"{name}: num_malicious must be <= {key} = {limit}, got num_malicious = {most}"
                )
        if n - fewest > k - m:
            raise ConfigError(
                f"{name} needs {n - fewest} benign clients in a round, but "
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
        require_number("FixedSchedule", "num_malicious", num_malicious, least=0, whole=True)
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
        Guthmann and Tan, see :class:`~leadfl_pl.LeadFL`, section III (periodic attack): period 10,
        burst 2, 6 of 10.
    """

    def __init__(self, period: int = 10, burst: int = 2, num_malicious: int = 6) -> None:
        require_number("BurstySchedule", "num_malicious", num_malicious, least=0, whole=True)
        require_number("BurstySchedule", "period", period, least=1, whole=True)
        require_number("BurstySchedule", "burst", burst, least=1, whole=True)
        if burst > period:
            raise ConfigError(
                f"BurstySchedule: burst must be <= period = {period}, got burst = {burst}"
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
        require_number("ForcedRounds", "num_malicious", num_malicious, least=0, whole=True)
        require_numbers("ForcedRounds", "rounds", rounds, least=0)
        self.schedule = schedule
        self.rounds = tuple(sorted(set(rounds)))
        self.num_malicious = num_malicious

    def malicious_count(self, round: int) -> int | None:
        return self.num_malicious if round in self.rounds else self.schedule.malicious_count(round)

    def malicious_range(self) -> tuple[int, int]:
        return self.num_malicious, self.num_malicious

    def draw_malicious(self, population: Population) -> tuple[int, ...]:
        return self.schedule.draw_malicious(population)

    def sample(self, population: Population, round: int, count: int | None) -> list[int]:
        return self.schedule.sample(population, round, count)

    def cohort(self, population: Population, round: int) -> Cohort:
        if round in self.rounds:
            return super().cohort(population, round)
        return self.schedule.cohort(population, round)

    def check(self, population: Population) -> None:
        require_override("ForcedRounds: schedule", self.schedule, Schedule)
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
        drawn: list[int] = state.choice(population.num_clients, n, replace=False).tolist()
        if count is None:
            return drawn
        malicious = self.draw_malicious(population)
        benign = sorted(set(range(population.num_clients)) - set(malicious))
        picked: list[int] = state.choice(benign, n - count, replace=False).tolist()
        picked += state.choice(malicious, count, replace=False).tolist()
        return picked


def check_cohort(schedule: Schedule, cohort: object, population: Population, round: int) -> None:
    """Raises :class:`ConfigError` unless ``cohort`` can be what ``schedule`` must return."""
    k, _, n, _ = population
    method = f"{type(schedule).__name__}.cohort"
    if not isinstance(cohort, Cohort) or cohort.round != round:
        got = cohort if isinstance(cohort, Cohort) else summarise(cohort)
        raise ConfigError(f"{method} must return the Cohort of round {round}, got {got}")
    require_clients(method, cohort.client_ids, n, k)
    malicious = set(schedule.draw_malicious(population))
    truth = tuple(c in malicious for c in cohort.client_ids)
    if tuple(cohort.malicious) != truth:
        raise ConfigError(f"{method} must return malicious = {truth}, got {cohort.malicious}")


def require_clients(method: str, ids: Sequence[int], count: int, num_clients: int) -> None:
    """Raises :class:`ConfigError` unless ``ids`` are ``count`` different clients."""
    shown: object = summarise(ids)
    if isinstance(ids, (list, tuple)):
        right = {c for c in ids if isinstance(c, Integral) and c in range(num_clients)}
        if len(right) == len(ids) == count:
            return
        shown = ids if len(ids) <= 20 else f"{len(ids)} ids, {len(right)} of them such"
    raise ConfigError(
        f"{method} must return {count} different clients in 0 .. {num_clients - 1}, got {shown}"
    )
