"""Defenses and attacks that were written for one client work unchanged in vectorised execution."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from executions import PATTERN, Net, assert_equal, client, train
from test_contract_defenses import DEFENSES
from tiny import SmallImages, small_trainer

import leadfl_pl as fl
from leadfl_pl.core.values import takes_stacks
from leadfl_pl.federation.clients import ClientFailed
from leadfl_pl.federation.vectorised.groups import fits
from leadfl_pl.federation.vectorised.training import VectorisedFailed


class Shrinking(fl.ClientDefense):
    """A user's defense: random weight decay from the client's generator and global ones."""

    def start(self, names, params) -> list[int]:
        assert params[0].shape == (4, 1, 3, 3)
        return []

    def after_step(self, step: fl.LocalStep, state: list[int]) -> list[int]:
        assert state == list(range(step.step))
        noise = torch.rand(1, generator=step.generator) + torch.rand(1)
        noise += np.random.rand() + random.random()
        for p in step.params:
            p.mul_(1 - 0.1 * noise)
        step.optimizer_step()
        return [*state, step.step]

    def finish(self, delta, generator) -> torch.Tensor:
        return delta + torch.rand(1, generator=generator) + torch.rand(1)

    def regulariser(self, state: list[int]) -> torch.Tensor | None:
        torch.rand(1)  # before that of finish()
        return torch.tensor(float(len(state)))


class Noisy(fl.PatternBackdoor):
    """A user's attack: noise from torch's global generator, another balance, a clipped gradient."""

    def tasks(self, x, y):
        assert x.ndim == 4
        return [*super().tasks(x, y), (x[:3] + torch.rand_like(x[:3]), y[:3])]

    def balance(self, losses, gradients):
        assert losses.shape == (3,)
        return torch.rand(3).to(losses) * losses

    def project(self, gradients):
        return [g.clamp(-0.1, 0.1) for g in gradients]


class Elsewhere(fl.PatternBackdoor):
    """A user's trigger: at a random place."""

    def stamp(self, x):
        self.position = (int(torch.randint(20, ())), 3)
        return super().stamp(x)


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: fl.DataPoisoning(a, rate=0.5)])
def test_a_stamp_written_for_one_client_works_unchanged(wrap) -> None:
    assert_equal(attack=wrap(Elsewhere()))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_defense_written_for_one_client_works_unchanged(momentum: float) -> None:
    sent = assert_equal(defense=Shrinking(), momentum=momentum, num_malicious=0)
    assert {float(u.regulariser) for u in sent} == {6.0}


@pytest.mark.parametrize("net", [Net, fl.DigitsNet])
@pytest.mark.parametrize(
    "wrap", [lambda a: a, lambda a: fl.Neurotoxin(a, share=0.2), lambda a: fl.PGD(a, epsilon=0.1)]
)
def test_an_attack_written_for_one_client_works_unchanged(wrap, net) -> None:
    attack = wrap(Noisy())
    assert_equal(attack=attack, net=net, defense=Overriding(), defended_attackers=True)


class Overriding(fl.LeadFL):
    """An override of a method that takes stacks does not take them."""

    def after_step(self, step: fl.LocalStep, state):
        assert not step.generators
        state = super().after_step(step, state)
        step.params[0].mul_(0.9)
        return state


class OneClientSAM(fl.SAM):
    """Asks for gradients elsewhere, one client at a time."""

    def after_step(self, step: fl.LocalStep, state):
        assert not step.generators
        return super().after_step(step, state)


def test_a_gradient_elsewhere_is_the_clients() -> None:
    assert_equal(defense=OneClientSAM(rho=0.5), attack=PATTERN, defended_attackers=True)


def test_an_override_loses_the_mark_and_the_package_has_it() -> None:
    assert not fits(Overriding(), "after_step")
    assert not fits(Noisy(), "tasks")
    for line in DEFENSES.values():
        assert fits(line.make(), "start", "after_step", "regulariser")


def test_a_stack_of_defended_clients_is_stepped_in_one_call(monkeypatch) -> None:
    calls: list[tuple[int, ...]] = []
    own = fl.LeadFL.after_step

    @takes_stacks
    def counting(self, step, state):
        calls.append(tuple(step.params[0].shape))
        return own(self, step, state)

    monkeypatch.setattr(fl.LeadFL, "after_step", counting)
    train("vectorised", fl.LeadFL(), rounds=1, num_malicious=0)
    tried = [(4, 1, 3, 3)] * 2  # before the first round, on one client
    assert calls == [*tried, *[(7, 4, 1, 3, 3)] * 6]


class Failing(fl.ClientDefense):
    """Fails for one client of the seven, the one whose noise starts like this."""

    bad: float | None = None

    def finish(self, delta, generator):
        value = float(torch.rand(1, generator=generator))
        if value == self.bad:
            raise RuntimeError("a broken client")
        return delta * 0 + value


class NoMemory(fl.ClientDefense):
    """A GPU whose memory is short for one client."""

    def after_step(self, step, state):
        if step.num_steps == 6:  # not where the defense is tried before the round
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_that_is_short_ends_the_run_and_leaves_no_client_out() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train("sequential", NoMemory(), rounds=1)


def test_a_client_that_raises_is_left_out_and_the_others_are_not() -> None:
    sent, _ = train("sequential", Failing(), rounds=1, num_malicious=0, precision="32-true")
    defense = Failing()
    defense.bad = float(sent[3].delta[0])
    trainer = small_trainer(rounds=1, federation={"execution": "vectorised", "num_malicious": 0})
    with (
        pytest.warns(VectorisedFailed, match="round 0: vectorised training raised RuntimeError"),
        pytest.warns(ClientFailed, match=f"client {sent[3].client_id} in round 0"),
    ):
        trainer.fit(client(defense=defense), datamodule=SmallImages(batch_size=8))
    assert float(trainer.callback_metrics["round/failed"]) == 1


class Placed(fl.Attack):
    """A trigger that is drawn, and no Backdoor."""

    def trigger(self, x: torch.Tensor, y: torch.Tensor):
        row = int(torch.randint(x.shape[-1], ()))
        stamped = x.clone()
        stamped[..., row, :] = 1
        return stamped, torch.zeros_like(y), y != 0


def test_a_trigger_written_for_one_client_works_unchanged() -> None:
    assert_equal(attack=fl.DataPoisoning(Placed(), rate=0.5))
