"""A model as vectors."""

from __future__ import annotations

import pytest
import torch
from tiny import SmallImages, Tied, small_trainer
from torch import nn

import leadfl_pl as fl
from leadfl_pl.core.vector import ModelVector


@pytest.mark.parametrize("space", ["params", "state"])
def test_a_tied_tensor_is_one_entry(space) -> None:
    net = Tied()
    vector = ModelVector(net, space)
    assert vector.d == sum(p.numel() for p in net.parameters()) == 64 * 64 + 2 * 64 + 3
    assert len(vector.trainable(vector.read())) == len(list(net.parameters()))


def test_an_attack_that_looks_at_the_last_step_works_on_tied_weights() -> None:
    attack = fl.Neurotoxin(fl.PatternBackdoor(), share=0.2)
    trainer = small_trainer(attack=attack, schedule=fl.FixedSchedule(3), rounds=2)
    trainer.fit(fl.FederatedClient(Tied()), datamodule=SmallImages(batch_size=8))
    assert "round/failed" not in trainer.callback_metrics


class Sum(nn.Module):
    """Logits with a weight that is the sum of two parameters, which have one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.change = nn.Parameter(torch.randn(10, 64)), nn.Parameter(torch.zeros(10, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.flatten(1), self.w + self.change)


def test_parameters_with_one_gradient_are_weighted_once() -> None:
    attack = fl.PatternBackdoor(balance="fixed", backdoor_weight=0.25)
    client = fl.MaliciousClient(Sum(), attack)
    client.start_round(0, num_steps=1)
    batch = torch.rand(4, 1, 8, 8), torch.arange(4)
    client.compute_gradient(batch, torch.Tensor.backward)
    (triggered, clean) = (
        nn.functional.cross_entropy(client(x), y) for x, y in attack.tasks(*batch)
    )
    params = [client.model.w, client.model.change]
    expected = torch.autograd.grad(0.25 * triggered + 0.75 * clean, params)
    torch.testing.assert_close([p.grad for p in params], list(expected))
