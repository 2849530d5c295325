"""SAM: a loop written from the paper, and what its second pass leaves behind."""

from __future__ import annotations

import pytest
import torch
from tiny import small_client
from torch import nn

from leadfl_pl import SAM, ConfigError, FederatedClient, MaliciousClient, PatternBackdoor

IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8)


class Squares(nn.Module):
    """Logits that are not linear in the parameters, so that the gradient differs uphill."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.c = nn.Parameter(torch.tensor([[1.0, -2.0]])), nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w.square() + self.c


def test_it_is_the_papers_loop() -> None:
    client = FederatedClient(Squares(), SAM(rho=0.3), lr=0.1)
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])

    def gradient(w: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        w, c = w.clone().requires_grad_(), c.clone().requires_grad_()
        loss = nn.functional.cross_entropy(x @ w.square() + c, y)
        return torch.autograd.grad(loss, (w, c))

    w, c = (p.detach().clone() for p in client.model.parameters())
    client.start_round(0, num_steps=4)
    optimizer = client.configure_optimizers()
    for _ in range(4):
        client.local_step((x, y), optimizer, torch.Tensor.backward)
        a, b = gradient(w, c)
        norm = (a.square().sum() + b.square().sum()).sqrt()  # of all parameters together
        a, b = gradient(w + 0.3 * a / norm, c + 0.3 * b / norm)
        w, c = w - 0.1 * a, c - 0.1 * b
    torch.testing.assert_close([p.detach() for p in client.model.parameters()], [w, c])


@pytest.mark.parametrize("rho", [0.0, 5.0])
def test_a_local_step_moves_running_statistics_and_counters_once(rho: float) -> None:
    plain, client = small_client(), small_client(SAM(rho))
    for each in (plain, client):
        each.start_round(0, num_steps=1)
        each.local_step(IMAGES, each.configure_optimizers(), torch.Tensor.backward)
    buffers = dict(plain.model.named_buffers())
    torch.testing.assert_close(dict(client.model.named_buffers()), buffers, rtol=0, atol=0)
    assert int(buffers["1.num_batches_tracked"]) == 1


def test_a_gradient_elsewhere_leaves_parameters_and_gradients_alone() -> None:
    client = small_client()
    client.model[3].p = 0.0  # dropout would make any two gradients differ
    client.start_round(0, num_steps=1)
    client.local_step(IMAGES, client.configure_optimizers(), torch.Tensor.backward)
    params, grads = list(client.model.parameters()), [p.grad for p in client.model.parameters()]
    before = [t.detach().clone() for t in (*params, *grads)]
    there = [2 * p.detach() for p in params]
    gradient = client.gradient_at(IMAGES, torch.Tensor.backward, there)
    assert not any(torch.equal(a, b) for a, b in zip(gradient, grads, strict=True))
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    torch.testing.assert_close([t.detach() for t in (*params, *grads)], before, rtol=0, atol=0)


def test_an_attacker_who_runs_it_climbs_its_own_loss() -> None:
    model, attack = small_client().model, PatternBackdoor(balance="fixed", backdoor_weight=0.25)
    model[3].p = 0.0  # dropout would make any two gradients differ
    client = MaliciousClient(model, attack)
    client.start_round(0, num_steps=1)
    params = list(model.parameters())
    there = [2 * p.detach() for p in params]
    gradient = client.gradient_at(IMAGES, torch.Tensor.backward, there)
    torch._foreach_copy_([p.data for p in params], there)
    triggered, clean = (nn.functional.cross_entropy(model(x), y) for x, y in attack.tasks(*IMAGES))
    expected = torch.autograd.grad(0.25 * triggered + 0.75 * clean, params)
    torch.testing.assert_close(gradient, list(expected))


@pytest.mark.parametrize("rho", [-0.1, float("nan")])
def test_a_rho_that_is_no_distance_is_refused(rho: float) -> None:
    with pytest.raises(ConfigError, match=r"SAM: rho must be .*, got rho = "):
        SAM(rho)
