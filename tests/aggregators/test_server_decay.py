"""Decay of the global model by the server alone."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from tiny import NetWithBatchNorm

import leadfl_pl as fl
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.federation.server import Server


def test_the_new_model_is_the_rules_shrunk() -> None:
    rng = torch.Generator().manual_seed(0)
    updates = torch.randn(7, 9, generator=rng, dtype=torch.float64)
    theta = torch.randn(9, generator=rng, dtype=torch.float64)
    delta = fl.ServerDecay(fl.Median(), 2.0)(updates, server=fl.ServerContext(model=theta))
    torch.testing.assert_close(theta + delta, 0.5**0.5 * (theta + fl.Median()(updates)))


def test_an_infinite_half_life_is_the_rule_alone() -> None:
    updates, server = torch.randn(5, 9), fl.ServerContext(model=torch.randn(9))
    delta = fl.ServerDecay(fl.FedAvg(), inf)(updates, server=server)
    assert torch.equal(delta, fl.FedAvg()(updates))


def test_the_server_gives_it_the_global_model_of_the_round() -> None:
    vector = ModelVector(NetWithBatchNorm())
    federation = fl.Federation(
        fl.ServerDecay(fl.FedAvg(), 1.0), fl.RandomSchedule(), num_clients=2, num_malicious=0,
        clients_per_round=2, local_steps=1,
    )  # fmt: skip
    server = Server(federation, torch.device("cpu"))
    for t in range(2):
        theta, delta = vector.read(), torch.full((vector.d,), 0.25)
        sent = [
            fl.ClientUpdate(c, delta, vector.read_buffers(), 5, delta[0], delta[0]) for c in (0, 1)
        ]
        server.step(sent, fl.Cohort(t, (0, 1), (False, False)), vector)
        torch.testing.assert_close(vector.read(), 0.5 * (theta + 0.25))


def test_what_the_rule_within_needs_is_asked_for_and_what_it_selects_is_told() -> None:
    rule = fl.ServerDecay(fl.Krum(f=1))
    with pytest.raises(fl.ConfigError, match=r"Krum needs n >= .* got n = 3"):
        rule.check(3)
    with pytest.raises(fl.ConfigError, match="SparseFed: k must be"):
        fl.ServerDecay(fl.SparseFed(k=50)).check_size(10)
    assert fl.ServerDecay(fl.FLTrust(root_size=7)).root_size == 7
    updates = torch.randn(6, 4)
    result = rule.aggregate(updates, torch.ones(6), fl.ServerContext(model=torch.zeros(4)))
    assert torch.equal(result.selected, fl.Krum(f=1).select(updates))


def test_without_a_global_model_it_says_what_it_needs() -> None:
    with pytest.raises(fl.ConfigError, match=r"ServerDecay needs the global model, server\.model"):
        fl.ServerDecay(fl.FedAvg())(torch.ones(2, 3))


@pytest.mark.parametrize("half_life", [0.0, -1.0, nan, -inf])
def test_a_half_life_that_is_none_is_refused(half_life: float) -> None:
    with pytest.raises(fl.ConfigError, match=r"half_life must be .*, got half_life = "):
        fl.ServerDecay(fl.FedAvg(), half_life)
