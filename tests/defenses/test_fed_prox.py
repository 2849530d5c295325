"""FedProx: SGD on the loss with the proximal term in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leadfl_pl import ConfigError, FederatedClient, FedProx


@pytest.mark.parametrize("mu", [0.0, 0.1, 3.0])
def test_it_is_sgd_on_the_loss_plus_the_proximal_term(mu: float) -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 4, generator=rng), torch.tensor([0, 1, 2, 0, 1, 2])
    client = FederatedClient(nn.Linear(4, 3), FedProx(mu), lr=0.2)
    loop = [p.detach().clone() for p in client.model.parameters()]
    anchor = [w.clone() for w in loop]
    client.start_round(0, num_steps=6)
    optimizer = client.configure_optimizers()
    for i in range(6):
        batch = x[i % 3 :], y[i % 3 :]
        client.local_step(batch, optimizer, torch.Tensor.backward)
        leaves = [w.requires_grad_() for w in loop]
        loss = nn.functional.cross_entropy(batch[0] @ leaves[0].T + leaves[1], batch[1])
        pairs = zip(leaves, anchor, strict=True)
        (loss + mu / 2 * sum((w - a).square().sum() for w, a in pairs)).backward()
        loop = [(w - 0.2 * w.grad).detach() for w in leaves]
    for p, w in zip(client.model.parameters(), loop, strict=True):
        torch.testing.assert_close(p, w)


def test_a_new_round_pulls_to_its_own_global_model() -> None:
    client = FederatedClient(nn.Linear(1, 2, bias=False), FedProx(mu=1e3), lr=1e-3)
    x, y = torch.ones(1, 1), torch.tensor([0])
    optimizer = client.configure_optimizers()
    for start in (5.0, -5.0):
        with torch.no_grad():
            client.model.weight.fill_(start)
        client.start_round(0, num_steps=3)
        for _ in range(3):  # with lr * mu = 1 each step starts from the global model again
            client.local_step((x, y), optimizer, torch.Tensor.backward)
        assert float((client.model.weight - start).detach().abs().max()) < 1e-3


@pytest.mark.parametrize("mu", [-0.1, float("nan")])
def test_a_mu_that_is_no_weight_is_refused(mu: float) -> None:
    with pytest.raises(ConfigError, match=r"FedProx: mu must be .*, got mu = "):
        FedProx(mu)
