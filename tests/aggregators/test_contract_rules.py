"""What every server-side rule keeps, and what tells it from its neighbours.

A new rule is one line in ``RULES``; a rule of the package without one fails.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import leadfl_pl as fl
from leadfl_pl.aggregators.base import check_aggregated


class Rule(NamedTuple):
    make: Callable[[], fl.Aggregator]
    least: int = 1  # updates that it needs
    robust: bool = True  # three of fifteen cannot carry it away
    translates: bool = True  # adding a vector to every update adds it to the aggregate
    scales: bool = True  # and so does a factor
    weighted: bool = False  # numbers of examples matter
    convex: bool = True  # the aggregate lies between the updates, coordinate by coordinate


RULES = {
    "FedAvg": Rule(fl.FedAvg, robust=False, weighted=True),
    "Krum": Rule(lambda: fl.Krum(f=3), least=9),
    "MultiKrum": Rule(lambda: fl.MultiKrum(f=3), least=9),
    "Bulyan": Rule(lambda: fl.Bulyan(f=3), least=15),
    "ReleasedBulyan": Rule(fl.ReleasedBulyan, least=7),
    "Median": Rule(fl.Median),
    "Median released": Rule(lambda: fl.Median(formulation="released")),
    "TrimmedMean": Rule(lambda: fl.TrimmedMean(beta=0.3)),
    "RFA": Rule(fl.RFA, weighted=True),
    "FLTrust": Rule(fl.FLTrust, translates=False, scales=False, convex=False),
    "FLAME": Rule(lambda: fl.FLAME(noise=0.0), least=2, translates=False, convex=False),
    "SparseFed": Rule(
        lambda: fl.SparseFed(k=5, clip=2.0),
        translates=False, scales=False, convex=False,
    ),
    "WeakDP": Rule(
        lambda: fl.WeakDP(max_norm=2.0, noise=0.0),
        translates=False, scales=False, weighted=True, convex=False,
    ),
    "CenteredClipping": Rule(
        lambda: fl.CenteredClipping(tau=2.0, iterations=3),
        translates=False, scales=False, convex=False,
    ),
    "DnC": Rule(lambda: fl.DnC(f=3, coordinates=12, iterations=2), least=4),
    "FoolsGold": Rule(fl.FoolsGold, translates=False, convex=False),
    "RobustLR": Rule(
        fl.RobustLR, least=4, robust=False, translates=False, weighted=True, convex=False
    ),
    "CRFL": Rule(
        lambda: fl.CRFL(norm=2.9, sigma=0.0),
        translates=False, scales=False, weighted=True, convex=False,
    ),
    "PreAggregation": Rule(
        lambda: fl.PreAggregation([fl.NearestNeighborMixing(f=3)], fl.Median()), least=7
    ),
    "PreAggregation clipped": Rule(
        lambda: fl.PreAggregation([fl.NormClipping()], fl.TrimmedMean(beta=0.3)),
        translates=False, convex=False,
    ),
    "ServerDecay": Rule(
        lambda: fl.ServerDecay(fl.TrimmedMean(beta=0.3)),
        translates=False, scales=False, convex=False,
    ),
}  # fmt: skip

N, D = 15, 23


def stack(seed: int, n: int = N, d: int = D, dtype=torch.float64) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (0.5 + torch.randn(n, d, generator=rng, dtype=torch.float64)).to(dtype)


def kinds(seed: int = 0) -> dict[str, torch.Tensor]:
    random = stack(seed)
    colluding = random.clone()
    colluding[:3] = -3.0
    one_huge, one_zero = random.clone(), random.clone()
    one_huge[4] = 1e9
    one_zero[5] = 0.0
    return {
        "random": random,
        "tiny spread": 1.0 + 1e-4 * random,
        "colluding": colluding,
        "one huge": one_huge,
        "one zero": one_zero,
        "all zero": torch.zeros(N, D, dtype=torch.float64),
        "identical": random[:1].repeat(N, 1),
        "one coordinate": stack(seed, d=5),
    }


def server(updates: torch.Tensor) -> fl.ServerContext:
    ones = torch.ones(updates.shape[1], dtype=updates.dtype)
    rng, clients = torch.Generator().manual_seed(0), torch.arange(len(updates))
    return fl.ServerContext(rng, root_update=ones, model=ones, clients=clients)


def call(name: str, updates: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    return RULES[name].make()(updates, weights, server(updates))


def named(**wanted: bool) -> list[str]:
    return [n for n, r in RULES.items() if all(getattr(r, k) == v for k, v in wanted.items())]


def subclasses(base: type) -> set[type]:
    return {base}.union(*(subclasses(child) for child in base.__subclasses__()))


def test_every_rule_of_the_package_has_a_line() -> None:
    known = {c for c in subclasses(fl.Aggregator) if c.__module__.startswith("leadfl_pl.")}
    tested = {type(rule.make()) for rule in RULES.values()}
    assert known - {fl.Aggregator} == tested
    assert all(getattr(fl, c.__name__) is c for c in tested)


def numbers() -> list[tuple[type[fl.Aggregator | fl.PreStep], str]]:
    """The numeric settings of all rules and of what can go before them."""
    found = []
    for name in fl.__all__:
        cls = getattr(fl, name)
        if isinstance(cls, type) and issubclass(cls, (fl.Aggregator, fl.PreStep)):
            hints = get_type_hints(cls.__init__)
            found += [
                (cls, k) for k, kind in hints.items() if {int, float} & {kind, *get_args(kind)}
            ]
    return found


@pytest.mark.parametrize("value", [math.nan, -1, "0.1", True])
@pytest.mark.parametrize(("rule", "key"), numbers())
def test_a_setting_that_is_no_number_in_its_range_is_named(rule, key: str, value: object) -> None:
    needed = {fl.SparseFed: {"k": 1}, fl.ServerDecay: {"rule": fl.FedAvg()}}.get(rule, {})
    with pytest.raises(
        fl.ConfigError, match=rf"^{rule.__name__}: {key} must be .*{key} = {value}$"
    ):
        rule(**needed | {key: value})


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("name", RULES)
def test_one_finite_update_of_the_same_dtype_and_the_input_left_alone(name: str, kind: str) -> None:
    exact = kinds()[kind]
    for dtype, tolerance in ((torch.float64, 0), (torch.float32, 1e-5), (torch.bfloat16, 0.01)):
        updates = exact.to(dtype)
        before = updates.clone()
        delta = call(name, updates)
        assert delta.dtype == dtype
        assert torch.equal(updates, before)
        expected = call(name, updates.double())
        assert expected.shape == exact.shape[1:]
        assert bool(expected.isfinite().all())
        scale = expected.abs().max() + 1e-9
        assert float((delta - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("name", RULES)
def test_permuting_the_clients_changes_nothing(name: str) -> None:
    for kind in ("random", "colluding", "one huge"):
        updates = kinds()[kind]
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(call(name, updates[order]), call(name, updates))


@pytest.mark.parametrize("name", RULES)
def test_adding_a_vector_to_all_adds_it_or_the_rule_looks_at_the_origin(name: str) -> None:
    updates, shift = stack(2), torch.linspace(-9, 9, D, dtype=torch.float64)
    moves = torch.allclose(call(name, updates + shift), call(name, updates) + shift, atol=1e-5)
    assert moves == RULES[name].translates


@pytest.mark.parametrize("name", RULES)
def test_a_common_factor_passes_through_or_the_rule_has_a_length_of_its_own(name: str) -> None:
    updates = stack(3)
    passes = torch.allclose(call(name, 3 * updates), 3 * call(name, updates), atol=1e-4)
    assert passes == RULES[name].scales


@pytest.mark.parametrize("name", RULES)
def test_numbers_of_examples_matter_only_where_said(name: str) -> None:
    updates, sizes = stack(4), torch.arange(1.0, N + 1)
    same = torch.equal(call(name, updates, sizes), call(name, updates))
    assert same != RULES[name].weighted


@pytest.mark.parametrize("name", named(convex=True))
def test_the_aggregate_lies_between_the_updates(name: str) -> None:
    for updates in kinds().values():
        delta, slack = call(name, updates), 1e-5 * updates.abs().max()
        assert bool((delta >= updates.amin(dim=0) - slack).all())
        assert bool((delta <= updates.amax(dim=0) + slack).all())


@pytest.mark.parametrize("name", named(convex=True))
def test_identical_updates_are_their_own_aggregate(name: str) -> None:
    updates = kinds()["identical"]
    torch.testing.assert_close(call(name, updates), updates[0])


@pytest.mark.parametrize("name", RULES)
def test_three_of_fifteen_do_not_carry_a_robust_rule_away(name: str) -> None:
    updates = stack(5)
    honest = updates[3:]
    far = torch.cat([torch.full((3, D), -1e6, dtype=torch.float64), honest])
    distance = (call(name, far) - honest.mean(dim=0)).norm()
    bound = 2 * (honest - honest.mean(dim=0)).norm(dim=1).max() + honest.mean(dim=0).norm()
    assert bool(distance <= bound) == RULES[name].robust


@pytest.mark.parametrize("name", RULES)
def test_a_malformed_row_is_as_if_it_had_not_been_sent(name: str) -> None:
    updates = stack(6, n=18)
    weights = torch.ones(18)
    updates[2, 3], updates[7], updates[9, 0], weights[4] = float("nan"), 1e30, -float("inf"), 0
    good = [0, 1, 3, 5, 6, 8, *range(10, 18)]
    if RULES[name].least > len(good):
        with pytest.warns(fl.RejectedUpdate), pytest.raises(fl.ConfigError, match="got n = 14"):
            call(name, updates, weights)
        return
    with pytest.warns(fl.RejectedUpdate) as caught:
        delta = call(name, updates, weights)
    assert [str(w.message).split(" is ")[0] for w in caught] == [
        f"the update of row {i}" for i in (2, 4, 7, 9)
    ]
    torch.testing.assert_close(delta, call(name, updates[good], weights[good]))


@pytest.mark.parametrize("name", RULES)
def test_its_least_number_of_updates_works_and_one_fewer_is_refused(name: str) -> None:
    least = RULES[name].least
    assert bool(call(name, stack(7, n=least)).isfinite().all())
    with pytest.raises(fl.ConfigError, match=rf"needs n >= .* got n = {least - 1}"):
        call(name, stack(7, n=least - 1))


@pytest.mark.parametrize("name", RULES)
def test_a_fresh_rule_with_its_memory_goes_on_alike(name: str) -> None:
    first, second = RULES[name].make(), RULES[name].make()
    first(stack(0), None, server(stack(0)))
    second.load_state_dict(first.state_dict())
    expected = first(stack(1), None, server(stack(1)))
    assert torch.equal(second(stack(1), None, server(stack(1))), expected)


@pytest.mark.parametrize("name", RULES)
def test_selected_are_distinct_clients_of_the_round(name: str) -> None:
    updates = stack(8)
    weights = torch.ones(N, dtype=torch.float64)
    rule = RULES[name].make()
    result = check_aggregated(rule, rule.aggregate(updates, weights, server(updates)), N, D)
    assert len(result.selected) >= 1


def test_no_two_rules_are_the_same() -> None:
    updates, sizes = stack(10, n=16), torch.arange(1.0, 17.0)  # an even number has two middles
    deltas = {name: call(name, updates, sizes) for name in RULES}
    for one, other in itertools.combinations(deltas, 2):
        assert not torch.allclose(deltas[one], deltas[other], rtol=1e-6), (one, other)


@pytest.mark.parametrize("name", RULES)
def test_the_global_random_state_plays_no_part(name: str) -> None:
    updates = stack(9)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = call(name, updates)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(call(name, updates), first)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(15, 24),
    d=st.integers(5, 40),
    spread=st.sampled_from([1e-4, 1.0, 1e4]),
    name=st.sampled_from(sorted(RULES)),
)
def test_on_any_stack_it_is_finite_and_blind_to_order(
    seed: int, n: int, d: int, spread: float, name: str
) -> None:
    updates = spread * stack(seed, n, d)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    delta = call(name, updates)
    assert bool(delta.isfinite().all())
    torch.testing.assert_close(call(name, updates[order]), delta, rtol=1e-6, atol=1e-6 * spread)
