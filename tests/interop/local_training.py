"""A client's local training with a defense written into the loop, as oracle of the plug-ins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leadfl_pl as fl
from leadfl_pl.core.values import LocalStep

STEPS, LR = 4, 0.1
State = dict[str, Tensor]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


GLOBAL = network().state_dict()


def batches(client: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(client)
    classes = torch.arange(10) % 3
    return [(torch.randn(10, 4, generator=rng), classes) for _ in range(STEPS)]


def by_hand(
    defense: fl.ClientDefense, noise_seed: int, client: int, start: State, momentum: float = 0
) -> State:
    """What a client sends that takes one step a batch."""
    model = network()
    model.load_state_dict(start)
    named = dict(model.named_parameters())
    names, params = list(named), [p.detach() for p in named.values()]
    sgd = torch.optim.SGD(named.values(), lr=LR, momentum=momentum)
    rng = torch.Generator().manual_seed(noise_seed)
    state = defense.start(names, params)
    for i, (x, y) in enumerate(batches(client)):
        sgd.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sgd.step()
        grads = [p.grad for p in named.values()]
        step = LocalStep(names, params, grads, LR, i, STEPS, i == 0, sgd.step, rng)
        state = defense.after_step(step, state)
    return model.state_dict()


def same(a: State, b: State) -> bool:
    return all(a[name].equal(b[name]) for name in b)


class Halved(fl.ClientDefense):
    """Sends half of its update."""

    def finish(self, delta: Tensor, generator: torch.Generator) -> Tensor:
        return delta.mul_(0.5)


class ReadsInitial(fl.ClientDefense):
    needs_initial = True
