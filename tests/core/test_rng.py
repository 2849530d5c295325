"""No draw depends on what ran before it, whoever makes it and from which generator."""

from __future__ import annotations

import random

import numpy as np
import torch
from tiny import SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl


def draws() -> torch.Tensor:
    """One from each of the global generators."""
    return torch.tensor([float(torch.rand(1)), np.random.rand(), random.random()])


class CarelessRule(fl.FedAvg):
    def combine(self, updates, weights):
        DRAWN["rule"].append(draws())
        return super().combine(updates, weights)


class CarelessAttack(fl.AttackWrapper):
    def local(self, view):
        DRAWN["local"].append(draws())
        return super().local(view)

    def corrupt(self, updates, malicious, generator):
        DRAWN["corrupt"].append(draws())
        return super().corrupt(updates, malicious, generator)


class CarelessDefense(fl.ClientDefense):
    def after_step(self, step, state):
        DRAWN["step"].append(draws())

    def finish(self, delta, generator):
        DRAWN["finish"].append(draws())
        return delta


DRAWN: dict[str, list[torch.Tensor]] = {}


def fit(seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    DRAWN.update({name: [] for name in ("rule", "local", "corrupt", "step", "finish")})
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    client = small_client(CarelessDefense())
    attack = CarelessAttack(fl.PatternBackdoor())
    trainer = small_trainer(CarelessRule(), attack, fl.FixedSchedule(3), rounds=2)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    return weights(client), {name: torch.stack(drawn) for name, drawn in DRAWN.items()}


def test_global_generators_play_no_part_and_no_draw_comes_twice() -> None:
    (one, drawn), (other, again) = fit(0), fit(1)
    assert torch.equal(one, other)
    for name, numbers in drawn.items():
        assert torch.equal(numbers, again[name]), name
        of_the_run = numbers[1:] if name in ("rule", "local", "corrupt") else numbers[3:]
        for source in of_the_run.T:  # the first ones are those of the trial before the run
            assert len(source.unique()) == len(source), name
