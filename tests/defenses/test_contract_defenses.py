"""What every client-side defense keeps, and what tells it from its neighbours.

A new defense is one line in ``DEFENSES``; a defense of the package without one fails.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from math import inf
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import leadfl_pl as fl
from leadfl_pl.defenses import check_defense
from leadfl_pl.defenses.base import LaplaceDefense


class Defense(NamedTuple):
    make: Callable[[], fl.ClientDefense]
    off: Callable[[], fl.ClientDefense] | None = None  # the limit that is plain local SGD
    noisy: bool = False
    weights_only: bool = False  # biases follow plain SGD for as long as the gradients do
    forgets: bool = False  # starts anew at each local epoch
    from_first: bool = False  # acts on the first local step too
    most: float | None = None  # the largest change of a coordinate in a step, in units of lr


DEFENSES = {
    "NoDefense": Defense(fl.NoDefense, off=fl.NoDefense),
    "LeadFL": Defense(fl.LeadFL, off=lambda: fl.LeadFL(alpha=0.0), most=0.4 * 0.2),
    "LeadFL squared": Defense(
        lambda: fl.LeadFL(norm="squared"), lambda: fl.LeadFL(0.0, norm="squared"), most=0.4 * 0.2
    ),
    "LeadFL weights": Defense(
        lambda: fl.LeadFL(parameters="weights"), weights_only=True, most=0.4 * 0.2
    ),
    "LeadFL released": Defense(lambda: fl.LeadFL(formulation="released"), forgets=True, most=0.2),
    "FLWBC": Defense(fl.FLWBC, lambda: fl.FLWBC(scale=0.0), noisy=True),
    "FLWBC released": Defense(
        lambda: fl.FLWBC(formulation="released"),
        lambda: fl.FLWBC(0.0, "released"),
        noisy=True, weights_only=True, forgets=True,
    ),
    "LDP": Defense(fl.LDP, lambda: fl.LDP(scale=0.0), noisy=True),
    "LDP released": Defense(
        lambda: fl.LDP(formulation="released"),
        lambda: fl.LDP(0.0, "released"),
        noisy=True, weights_only=True, forgets=True,
    ),
    "Contraction": Defense(
        fl.Contraction, lambda: fl.Contraction(inf), weights_only=True, from_first=True
    ),
    "Contraction all": Defense(
        lambda: fl.Contraction(parameters="all"),
        lambda: fl.Contraction(inf, "all"),
        from_first=True,
    ),
    "Contraction initial": Defense(
        lambda: fl.Contraction(anchor="initial"),
        lambda: fl.Contraction(inf, anchor="initial"),
        weights_only=True, from_first=True,
    ),
    "ConstantDrift": Defense(
        lambda: fl.ConstantDrift(clip=1.0), lambda: fl.ConstantDrift(alpha=0.0), most=0.4 * 0.71
    ),
    "ConstantDrift weights": Defense(
        lambda: fl.ConstantDrift(norm="squared", parameters="weights"),
        weights_only=True, most=0.4 * 0.2,
    ),
    "FedProx": Defense(fl.FedProx, lambda: fl.FedProx(mu=0.0)),
    "SAM": Defense(fl.SAM, lambda: fl.SAM(rho=0.0), from_first=True),
}  # fmt: skip
SHAPES = {"conv.weight": (2, 3, 2), "conv.bias": (2,), "head.weight": (4, 5), "head.bias": (4,)}
Params = list[torch.Tensor]


def draws(seed: int, steps: int, scale: float = 1.0, dtype=torch.float64) -> list[Params]:
    """One set of tensors for each local step."""
    rng = torch.Generator().manual_seed(seed)
    exact = torch.float64
    return [
        [scale * torch.randn(s, generator=rng, dtype=exact).to(dtype) for s in SHAPES.values()]
        for _ in range(steps)
    ]


class Client:
    """Local SGD on given gradients, with a defense."""

    def __init__(self, defense: fl.ClientDefense, lr: float, seed: int = 0, dtype=torch.float64):
        (self.params,) = draws(99, 1, dtype=dtype)
        self.defense, self.lr, self.step = defense, lr, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.state = defense.start(list(SHAPES), self.params)
        self.initial = [p.clone() for p in self.params]

    def train(self, grads: Params, epoch_start: bool = False) -> None:
        grads = [g.clone() for g in grads]

        def optimizer_step() -> None:
            torch._foreach_add_(self.params, grads, alpha=-self.lr)

        def gradient_at(params: Params) -> Params:
            return [g + 0.5 * (p - w) for p, w, g in zip(params, before, grads, strict=True)]

        before = [p.clone() for p in self.params]
        optimizer_step()
        step = fl.LocalStep(
            list(SHAPES), self.params, grads, self.lr, self.step, 9, epoch_start or not self.step,
            optimizer_step, self.generator, initial=self.initial, gradient_at=gradient_at,
        )  # fmt: skip
        self.state = self.defense.after_step(step, self.state)
        self.step += 1


def run(defense: fl.ClientDefense, grads: list[Params], lr: float = 0.1, seed: int = 0,
        epochs: tuple[int, ...] = (), dtype=torch.float64) -> torch.Tensor:  # fmt: skip
    """The weights after local training, as one vector; ``epochs`` are steps that start one."""
    client = Client(defense, lr, seed, dtype)
    for i, g in enumerate(grads):
        client.train(g, i in epochs)
    return torch.cat([p.flatten() for p in client.params])


def subclasses(base: type) -> set[type]:
    kinds = {base}
    for child in base.__subclasses__():
        kinds |= subclasses(child)
    return kinds


def test_every_defense_of_the_package_has_a_line() -> None:
    known = {
        c for c in subclasses(fl.ClientDefense) if c.__module__.startswith("leadfl_pl.defenses.")
    }
    bases = {fl.ClientDefense, LaplaceDefense}
    assert known - bases == {type(d.make()) for d in DEFENSES.values()}


@pytest.mark.parametrize("name", DEFENSES)
def test_it_passes_the_check_of_the_first_round_and_its_settings_can_be_read_back(name) -> None:
    defense = DEFENSES[name].make()
    check_defense(defense, list(SHAPES), draws(0, 1, dtype=torch.float32)[0])
    parameters = inspect.signature(type(defense)).parameters
    assert set(parameters) - {"args", "kwargs"} == vars(defense).keys()


@pytest.mark.parametrize("name", [n for n, d in DEFENSES.items() if d.off])
def test_switched_off_it_is_plain_sgd_to_the_bit(name: str) -> None:
    grads, plain = draws(0, 5), run(fl.NoDefense(), draws(0, 5), epochs=(3,))
    assert torch.equal(run(DEFENSES[name].off(), grads, epochs=(3,)), plain)
    assert torch.equal(run(DEFENSES[name].make(), grads, epochs=(3,)), plain) == (
        name == "NoDefense"
    )


@pytest.mark.parametrize("name", DEFENSES)
def test_the_first_local_step_is_left_alone_where_said_and_the_second_is_not(name: str) -> None:
    grads = draws(1, 2)
    same = torch.equal(run(DEFENSES[name].make(), grads[:1]), run(fl.NoDefense(), grads[:1]))
    assert same != DEFENSES[name].from_first
    same = torch.equal(run(DEFENSES[name].make(), grads), run(fl.NoDefense(), grads))
    assert same == (name == "NoDefense")


@pytest.mark.parametrize("name", DEFENSES)
def test_a_new_local_epoch_is_a_new_start_only_where_said(name: str) -> None:
    grads = draws(2, 2)
    restarted = run(DEFENSES[name].make(), grads, epochs=(1,))
    untouched = torch.equal(restarted, run(fl.NoDefense(), grads))
    assert untouched == (DEFENSES[name].forgets or name == "NoDefense")


@pytest.mark.parametrize("name", DEFENSES)
def test_its_noise_is_the_clients_and_not_the_worlds(name: str) -> None:
    grads, make = draws(3, 4), DEFENSES[name].make
    torch.manual_seed(0)
    world = torch.get_rng_state()
    first = run(make(), grads, seed=5)
    assert torch.equal(torch.get_rng_state(), world)
    assert torch.equal(run(make(), grads, seed=5), first)
    assert torch.equal(run(make(), grads, seed=6), first) != DEFENSES[name].noisy


@pytest.mark.parametrize("name", DEFENSES)
def test_one_object_serves_two_clients_in_turn(name: str) -> None:
    shared, grads, others = DEFENSES[name].make(), draws(4, 4), draws(5, 4)
    one, other = Client(shared, 0.1, seed=1), Client(shared, 0.1, seed=2)
    for g, h in zip(grads, others, strict=True):
        one.train(g)
        other.train(h)
    for client, alone, seed in ((one, grads, 1), (other, others, 2)):
        end = torch.cat([p.flatten() for p in client.params])
        assert torch.equal(end, run(DEFENSES[name].make(), alone, seed=seed))


@pytest.mark.parametrize("name", DEFENSES)
def test_biases_are_left_alone_only_where_said(name: str) -> None:
    grads = draws(6, 3)
    ends = []
    for defense in (DEFENSES[name].make(), fl.NoDefense()):
        client = Client(defense, 0.1)
        for g in grads:
            client.train(g)
        ends.append(client.params)
    same = [torch.equal(a, b) for a, b in zip(*ends, strict=True)]
    if name == "NoDefense":
        assert same == [True] * 4
    else:
        assert same == [False, DEFENSES[name].weights_only] * 2


@pytest.mark.parametrize("name", DEFENSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_keeps_the_dtype_and_stays_finite(name: str, dtype: torch.dtype) -> None:
    for scale in (0.0, 1e-6, 1.0, 1e6):
        end = run(DEFENSES[name].make(), draws(7, 3, scale, dtype), dtype=dtype)
        assert end.dtype == dtype
        assert bool(end.isfinite().all())


def test_no_two_defenses_are_the_same() -> None:
    ends = {name: run(d.make(), draws(8, 4)) for name, d in DEFENSES.items()}
    for one, other in itertools.combinations(ends, 2):
        assert not torch.allclose(ends[one], ends[other], rtol=1e-9), (one, other)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    lr=st.sampled_from([1e-3, 0.1, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    name=st.sampled_from([n for n, d in DEFENSES.items() if d.most is not None]),
)
def test_the_clip_bounds_what_one_step_may_change(
    seed: int, lr: float, scale: float, name: str
) -> None:
    grads = draws(seed, 2, scale)
    moved = run(DEFENSES[name].make(), grads, lr) - run(fl.NoDefense(), grads, lr)
    assert float(moved.abs().max()) <= DEFENSES[name].most * lr * (1 + 1e-9)
