"""Vectorised execution does what sequential execution does, up to rounding.

The bounds are on ||update - sequential update|| / ||sequential update||, the worst client of a
round of 6 local steps or of two such rounds: 1e-10 in float64. In float32 2e-5, the median client
of one round: now and then rounding puts a client on the other side of a kink.
"""

from __future__ import annotations

import sys
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
from executions import (
    FLOAT32,
    FLOAT64,
    PATTERN,
    GroupNormNet,
    Net,
    assert_equal,
    compare,
    distance,
    train,
)
from test_contract_attacks import ATTACKS
from test_contract_defenses import DEFENSES
from tiny import Tied, TinyImages

import leadfl_pl as fl
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.vectorised.training import VectorisedClients, VectorisedFailed


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_gives_the_sequential_updates(name: str, momentum: float) -> None:
    assert_equal(
        defense=DEFENSES[name].make(),
        attack=PATTERN,
        momentum=momentum,
        carry_momentum=momentum > 0,
        defended_attackers=True,
    )


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_keeps_the_float32_bound(name: str) -> None:
    defense = DEFENSES[name].make()
    _, distances = compare(defense=defense, attack=PATTERN, precision="32-true", rounds=1)
    for part, values in distances.items():
        assert median(values) <= FLOAT32, part
        assert max(values) <= 1e-3, part


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_gives_the_sequential_updates(name: str) -> None:
    assert_equal(defense=fl.LeadFL(), attack=ATTACKS[name].attack, rounds=2)


@pytest.mark.parametrize("attack", [PATTERN, fl.PatternBackdoor(balance="fixed")])
@pytest.mark.parametrize("net", [Net, fl.DigitsNet, Tied])
def test_networks_with_and_without_buffers_and_with_tied_weights(net, attack) -> None:
    assert_equal(defense=fl.FLWBC(), attack=attack, net=net)


@pytest.mark.parametrize("net", [fl.FashionMNISTNet, GroupNormNet])
def test_the_networks_of_the_package(net) -> None:
    sizes = {"clients_per_round": 3, "local_epochs": None, "local_steps": 2}
    assert_equal(defense=fl.LeadFL(), attack=PATTERN, net=net, data=TinyImages, rounds=1, **sizes)


@pytest.mark.parametrize("split", [fl.Dirichlet(beta=0.5), fl.QuantitySkew()])
@pytest.mark.parametrize("length", [{"local_epochs": 3}, {"local_epochs": None, "local_steps": 5}])
@pytest.mark.parametrize("defense", [fl.FLWBC(formulation="released"), fl.LeadFL()])
def test_clients_of_unequal_size(split, length, defense) -> None:
    sent = assert_equal(
        defense=defense, attack=PATTERN, split=split, rounds=1, clients_per_round=12, **length
    )
    assert len({-(-u.num_examples // 8) for u in sent}) > 1  # unequal numbers of steps an epoch


@pytest.mark.parametrize("num_malicious", [0, 12])
def test_cohorts_of_one_kind_only(num_malicious: int) -> None:
    assert_equal(defense=fl.LeadFL(), attack=PATTERN, num_malicious=num_malicious)


def test_one_client_a_round() -> None:
    assert_equal(defense=fl.LDP(), clients_per_round=1)


def test_counters_are_measured_as_in_sequential_execution() -> None:
    sent = assert_equal(attack=PATTERN, distance_space="state", rounds=1)
    assert {float(u.delta.max()) for u in sent} == {6.0, 12.0}  # MGDA's two forward passes


def test_the_momentum_of_a_client_travels_on() -> None:
    kwargs: dict[str, Any] = {"momentum": 0.9, "carry_momentum": True, "clients_per_round": 12}
    sent = assert_equal(defense=fl.LeadFL(formulation="released"), **kwargs)
    without, _ = train("vectorised", defense=fl.LeadFL(formulation="released"), momentum=0.9,
                       clients_per_round=12)  # fmt: skip
    assert distance(without[-1].delta, sent[-1].delta) > 0.01


def test_a_share_of_the_cohort_trains_as_the_whole_does() -> None:
    _, trainer = train("vectorised", fl.FLWBC(), PATTERN, rounds=1)
    clients, cohort = trainer.fit_loop.clients, trainer.federation.cohort(0)
    trainer.training = True
    whole = clients.train_together(cohort, range(7), None)
    for share in ([0, 2, 5], [1, 3, 4, 6], [6], []):
        updates = clients.train_together(cohort, share, None)
        assert sorted(updates) == sorted(share)
        for position, update in updates.items():
            assert distance(update.delta, whole[position].delta) <= FLOAT64


def test_one_by_one_starts_when_what_all_computed_is_let_go(monkeypatch) -> None:
    handled = []

    def fails(*args):
        raise RuntimeError("out of memory")

    def train(self, cohort, positions, last_update):
        handled.append(sys.exc_info()[1])
        return iter([])

    monkeypatch.setattr(VectorisedClients, "train_together", fails)
    monkeypatch.setattr(Clients, "train", train)
    clients = VectorisedClients.__new__(VectorisedClients)
    with pytest.warns(VectorisedFailed, match="one after the other"):
        list(clients.train(SimpleNamespace(round=1), [0], None))
    assert handled == [None]
