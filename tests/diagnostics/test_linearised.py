"""Tangents of local training: against finite differences, full Hessians, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import SmallImages, small_client, small_trainer, weights
from torch import nn

import leadfl_pl as fl
from leadfl_pl.diagnostics.linearised import (
    Propagation,
    diagonal_product,
    exact_product,
    hessian_vector_product,
    zero_product,
)
from leadfl_pl.diagnostics.replay import Observer, replay
from leadfl_pl.federation.client_update import client_update

SMOOTH = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))


def cross_entropy(theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    hidden = torch.tanh(x @ theta[:6].view(3, 2))
    return nn.functional.cross_entropy(hidden @ theta[6:].view(2, 2), y)


def test_a_product_is_that_with_the_full_hessian_and_a_difference_of_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    x, v = torch.randn(4, 3, generator=rng).double(), torch.randn(10, generator=rng).double()
    theta, y = torch.randn(10, generator=rng).double().requires_grad_(), torch.tensor([0, 1, 1, 0])
    loss = cross_entropy(theta, x, y)
    (g,) = torch.autograd.grad(loss, [theta], create_graph=True)
    (product,) = hessian_vector_product([g], [theta], [v])
    full = torch.func.hessian(cross_entropy)(theta.detach(), x, y)
    torch.testing.assert_close(product, full @ v, rtol=1e-12, atol=1e-14)
    gradient = torch.func.grad(cross_entropy)
    ahead, behind = (gradient(theta.detach() + e * v, x, y) for e in (1e-5, -1e-5))
    torch.testing.assert_close(product, (ahead - behind) / 2e-5, rtol=1e-7, atol=1e-9)


def test_a_loss_that_is_linear_has_products_of_zero() -> None:
    w = torch.ones(3, requires_grad=True)
    g = torch.autograd.grad((2 * w).sum(), [w], create_graph=True)
    assert torch.equal(hessian_vector_product(g, [w], [torch.ones(3)])[0], torch.zeros(3))


def trained(
    defense: fl.ClientDefense | None, network: nn.Module = SMOOTH, **settings: Any
) -> fl.FederatedClient:
    """A client in float64 that a federation has trained for a round, and can train again."""
    client = fl.FederatedClient(network, defense, lr=0.1, **settings)
    trainer = small_trainer(rounds=1, precision="64-true", limit_val_batches=0)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    return client


def direction(client: fl.FederatedClient) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    d = client.trainer.fit_loop.clients.vector.d
    return torch.randn(d, generator=rng, dtype=torch.float64)


def change(client: fl.FederatedClient, v: torch.Tensor, product: Any = exact_product) -> Any:
    """What a replay of client 3 in round 1 makes of v_0 = v: the difference (d,) of the updates."""
    clients = client.trainer.fit_loop.clients
    seen = Propagation(client.defense, client.momentum, {"v": clients.vector.trainable(v)},
                       {"v": product})  # fmt: skip
    replay(clients, 1, 3, seen)
    return seen.changes["v"]


def update(client: fl.FederatedClient, v: torch.Tensor) -> torch.Tensor:
    """The update of the same client in the same round, from a model that is moved by v."""
    clients = client.trainer.fit_loop.clients
    theta = clients.vector.read()
    clients.vector.write(theta + v)
    try:
        return client_update(client, clients.vector, clients.task(1, 3)).delta
    finally:
        clients.vector.write(theta)


DEFENSES = [
    fl.NoDefense(),
    fl.Contraction(1.0, "all"),
    fl.Contraction(1.0, anchor="initial"),
    fl.LeadFL(alpha=3.0),
    fl.LeadFL(alpha=3.0, norm="squared", clip=2.0),
    fl.LeadFL(formulation="released"),
    fl.ConstantDrift(),
    fl.FedProx(mu=1.0),
    fl.LDP(),
    fl.FLWBC(scale=1e-3),
]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: type(d).__name__)
def test_a_small_difference_goes_through_local_training_as_it_is_propagated(
    defense: fl.ClientDefense, momentum: float
) -> None:
    client = trained(defense, momentum=momentum)
    v = 1e-6 * direction(client)
    measured = (update(client, v) - update(client, -v)) / 2
    estimate = change(client, v)
    assert (estimate - measured).norm() < 1e-5 * measured.norm()
    flat = change(client, v, zero_product)
    assert (flat - measured).norm() > 1e-2 * measured.norm()


def test_what_a_defense_sends_is_propagated_too() -> None:
    class Half(fl.ClientDefense):
        def finish(self, delta: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return 0.5 * delta

    client = trained(Half())
    v = 1e-6 * direction(client)
    half = change(client, v)
    client.defense = fl.NoDefense()
    torch.testing.assert_close(half, 0.5 * change(client, v), rtol=1e-9, atol=0)


def test_a_contraction_is_a_factor_s_of_every_step() -> None:
    client = trained(fl.Contraction(half_life=2.0, parameters="all"))
    v = direction(client)
    torch.testing.assert_close(change(client, v, zero_product), (2**-0.5 - 1) * v)


def test_the_diagonal_is_the_difference_of_the_gradients_of_two_steps_by_hand() -> None:
    grads = [[torch.tensor([1.0, -1.0])], [torch.tensor([3.0, -1.5])]]
    v = [torch.tensor([2.0, 4.0])]
    assert torch.equal(diagonal_product([], grads[0], None, v)[0], torch.zeros(2))
    assert torch.equal(diagonal_product([], grads[1], grads[0], v)[0], torch.tensor([4.0, -2.0]))


def test_the_diagonal_along_a_course_is_a_product_of_factors() -> None:
    class Gradients(Observer):
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

        def gradient(self, params: list[nn.Parameter], grads: list[torch.Tensor]) -> None:
            self.seen.append(torch.cat([g.detach().flatten() for g in grads]))

    client = trained(None)
    seen, v = Gradients(), direction(client)
    replay(client.trainer.fit_loop.clients, 1, 3, seen)
    assert len(seen.seen) == 6
    expected = v.clone()
    for last, g in zip(seen.seen, seen.seen[1:], strict=False):
        expected *= 1 - 0.1 * (g - last)
    torch.testing.assert_close(change(client, v, diagonal_product), expected - v)


NETWORKS = {"digits": fl.DigitsNet, "batch norm and dropout": lambda: small_client().model}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: type(d).__name__)
def test_a_replay_is_the_update_to_the_bit_and_leaves_everything_as_it_was(
    defense: fl.ClientDefense, name: str
) -> None:
    client = fl.FederatedClient(NETWORKS[name](), defense, lr=0.1, momentum=0.5)
    small_trainer(rounds=1).fit(client, datamodule=SmallImages(batch_size=8))
    clients, before = client.trainer.fit_loop.clients, weights(client)
    expected = client_update(client, clients.vector, clients.task(1, 3))
    v = clients.vector.trainable(torch.ones(clients.vector.d))
    torch.manual_seed(3)
    seen = Propagation(defense, 0.5, {"v": v}, {"v": exact_product})
    replayed = replay(clients, 1, 3, seen)
    assert torch.equal(replayed.delta, expected.delta)
    assert torch.equal(replayed.buffers, expected.buffers)
    assert torch.equal(weights(client), before)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(3)))
    assert client.trainer.lightning_module is client


def test_the_gradients_of_the_step_before_are_those_that_the_client_computed() -> None:
    seen = Propagation(fl.NoDefense(), 0.0, {}, {})
    gradient = torch.ones(3)
    seen.gradient([], [gradient])
    gradient.clamp_(max=0.2)  # as LeadFL's released form does
    assert seen.last_grads[0].tolist() == [1, 1, 1]
