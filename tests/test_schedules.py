"""Who takes part in a round."""

from __future__ import annotations

import inspect

import pytest

from leadfl_pl import (
    BurstySchedule,
    Cohort,
    ConfigError,
    FixedSchedule,
    ForcedRounds,
    Population,
    RandomSchedule,
    ReleasedSchedule,
    Schedule,
)

POPULATION = Population(num_clients=100, num_malicious=25, clients_per_round=10, seed=3)
SCHEDULES: dict[str, Schedule] = {
    "random": RandomSchedule(),
    "fixed": FixedSchedule(4),
    "bursty": BurstySchedule(),
    "forced": ForcedRounds(RandomSchedule(), [0, 10, 12], 5),
    "released": ForcedRounds(ReleasedSchedule(), [0, 10, 12], 5),
}


def counts(schedule: Schedule, rounds: int = 40) -> list[int]:
    return [sum(schedule.cohort(POPULATION, t).malicious) for t in range(rounds)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_cohort_has_n_different_clients_and_the_truth_about_them(name: str) -> None:
    malicious = set(SCHEDULES[name].draw_malicious(POPULATION))
    assert len(malicious) == 25
    for t in range(30):
        cohort = SCHEDULES[name].cohort(POPULATION, t)
        assert cohort.round == t
        assert len(set(cohort.client_ids)) == 10
        assert set(cohort.client_ids) <= set(range(100))
        assert cohort.malicious == tuple(c in malicious for c in cohort.client_ids)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_setting_can_be_read_back(name: str) -> None:
    parameters = inspect.signature(type(SCHEDULES[name])).parameters
    assert set(parameters) - {"args", "kwargs"} == vars(SCHEDULES[name]).keys()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_round_is_drawn_again_whatever_was_drawn_before(name: str) -> None:
    schedule = SCHEDULES[name]
    alone = schedule.cohort(POPULATION, 17)
    assert [schedule.cohort(POPULATION, t) for t in range(20)][17] == alone
    if name != "released":  # that one has its own seeds
        assert schedule.cohort(POPULATION._replace(seed=4), 17) != alone


def test_chance_alone_gives_the_hypergeometric_spread() -> None:
    drawn = counts(RandomSchedule(), rounds=2000)
    assert sum(drawn) / 2000 == pytest.approx(2.5, abs=0.1)
    assert max(drawn) >= 6  # now and then the malicious are the majority


def test_fixed_has_the_same_number_in_every_round() -> None:
    assert set(counts(FixedSchedule(4))) == {4}


def test_bursts_are_two_rounds_of_six_in_every_ten() -> None:
    assert counts(BurstySchedule()) == ([6, 6] + [0] * 8) * 4


def test_forced_rounds_lie_over_another_schedule() -> None:
    forced = ForcedRounds(BurstySchedule(), [3, 10], 5)
    assert counts(forced, 12) == [6, 6, 0, 5, 0, 0, 0, 0, 0, 0, 5, 6]
    free = ForcedRounds(RandomSchedule(), [3], 5)
    assert free.cohort(POPULATION, 4) == RandomSchedule().cohort(POPULATION, 4)


class Pairs(Schedule):
    """A schedule that draws neighbours."""

    def cohort(self, population, round):
        malicious = set(self.draw_malicious(population))
        ids = tuple(range(round, round + population.clients_per_round))
        return Cohort(round, ids, tuple(c in malicious for c in ids))


class Misspelt(Schedule):
    def malicious_counts(self, round):
        return 3


def test_forced_rounds_leave_the_others_to_their_schedule_whatever_it_overrides() -> None:
    forced = ForcedRounds(Pairs(), [3], 5)
    assert forced.cohort(POPULATION, 4) == Pairs().cohort(POPULATION, 4)
    assert sum(forced.cohort(POPULATION, 3).malicious) == 5
    with pytest.raises(ConfigError, match="ForcedRounds: schedule"):
        ForcedRounds(Misspelt(), [3], 5).check(POPULATION)


def test_the_order_of_a_cohort_does_not_give_the_malicious_away() -> None:
    cohorts = [FixedSchedule(5).cohort(POPULATION, t).malicious for t in range(400)]
    for position in range(10):
        assert sum(c[position] for c in cohorts) / 400 == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (FixedSchedule(11), "FixedSchedule: num_malicious must be <= clients_per_round = 10"),
        (BurstySchedule(num_malicious=12), "<= clients_per_round = 10, got num_malicious = 12"),
        (ForcedRounds(RandomSchedule(), [1], 11), "ForcedRounds: num_malicious must be <= cli"),
        (ForcedRounds(FixedSchedule(12), [1], 2), "FixedSchedule: num_malicious must be <= cli"),
    ],
)
def test_more_malicious_than_the_cohort_holds_is_refused(schedule: Schedule, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule.check(POPULATION)


def test_more_malicious_than_there_are_is_refused() -> None:
    few = POPULATION._replace(num_malicious=3)
    with pytest.raises(ConfigError, match="population's num_malicious = 3, got num_malicious = 6"):
        BurstySchedule().check(few)


def test_too_few_benign_clients_are_refused() -> None:
    many = POPULATION._replace(num_malicious=95)
    with pytest.raises(ConfigError, match="BurstySchedule needs 10 benign clients"):
        BurstySchedule().check(many)
    with pytest.raises(ConfigError, match="FixedSchedule needs 10 benign clients"):
        FixedSchedule(0).check(many)
    RandomSchedule().check(many)


class Mine(Schedule):
    """A schedule that returns what it is given."""

    def __init__(self, count: object = None, ids: object = None, malicious: object = None) -> None:
        self.count, self.ids, self.malicious = count, ids, malicious

    def malicious_count(self, round):
        return self.count

    def sample(self, population, round, count):
        return super().sample(population, round, count) if self.ids is None else self.ids

    def draw_malicious(self, population):
        return super().draw_malicious(population) if self.malicious is None else self.malicious


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 99}, r"Mine: malicious_count\(3\) must be <= 10, got malicious_count\(3\) = 99"),
        ({"count": 2.5}, r"malicious_count\(3\) must be a whole number"),
        ({"ids": range(10)}, r"Mine.sample must return 10 different clients in 0 .. 99, got range"),
        ({"ids": [*range(9), 8]}, "10 different clients .* got .*7, 8, 8"),
        ({"ids": [*range(9), 100]}, "10 different clients in 0 .. 99, got .* 100"),
        ({"ids": list(range(99))}, "10 different clients in 0 .. 99, got 99 ids"),
        ({"count": 4, "ids": list(range(10)), "malicious": tuple(range(75, 100))},
         "Mine.sample must return 4 malicious clients for round 3, got 0"),
        ({"malicious": (1, 2)}, "Mine.draw_malicious must return 25 different clients"),
    ],
)  # fmt: skip
def test_a_users_schedule_must_draw_what_it_was_asked_for(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mine(**settings).cohort(POPULATION, 3)


def test_a_round_without_enough_benign_clients_is_refused() -> None:
    many = POPULATION._replace(num_malicious=95)
    with pytest.raises(ConfigError, match=r"malicious_count\(0\) must be >= 5"):
        Mine(count=4).cohort(many, 0)
    assert sum(Mine(count=5).cohort(many, 0).malicious) == 5


def test_forced_rounds_are_the_same_setting_in_any_order() -> None:
    one, other = (ForcedRounds(RandomSchedule(), r, 5) for r in ([12, 0, 10], [0, 10, 12, 12]))
    assert one.rounds == other.rounds == (0, 10, 12)
    with pytest.raises(ConfigError, match="ForcedRounds: rounds must be >= 0, got rounds = -1"):
        ForcedRounds(RandomSchedule(), [-1], 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"burst": 11}, "burst must be <= period = 10, got burst = 11"),
        ({"burst": 0}, "burst must be >= 1, got burst = 0"),
        ({"num_malicious": -1}, "num_malicious must be >= 0, got num_malicious = -1"),
        ({"num_malicious": 2.5}, "num_malicious must be a whole number"),
    ],
)
def test_a_burst_that_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BurstySchedule(**settings)
