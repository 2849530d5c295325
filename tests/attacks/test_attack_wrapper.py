"""An attack around another one: what it overrides is what the attackers do."""

from __future__ import annotations

import pytest
import torch
from tiny import NetWithBatchNorm

import leadfl_pl as fl

X, Y = torch.rand(4, 1, 28, 28), torch.arange(4)


class Louder(fl.AttackWrapper):
    """A user's: twice the gradient of the backdoor."""

    def balance(self, losses, gradients):
        return super().balance(losses, gradients) * torch.tensor([2.0, 1.0])


class LouderTimed(fl.DecayTimed):
    def balance(self, losses, gradients):
        return super().balance(losses, gradients) * torch.tensor([2.0, 1.0])


def test_a_subclass_of_a_wrapper_keeps_what_it_overrides() -> None:
    view = fl.AttackerView(0, 2, fl.FashionMNISTNet(), X, Y, None)
    local = LouderTimed(fl.PatternBackdoor(balance="fixed"), threshold=1.0).local(view)
    assert local.balance(torch.ones(2), []).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("inner", [fl.PatternBackdoor(balance="fixed"), fl.DBA(balance="fixed")])
def test_a_client_carries_out_what_the_wrapper_overrides_and_what_it_leaves(inner) -> None:
    view = fl.AttackerView(0, 2, NetWithBatchNorm(), X, Y, None)
    attack = Louder(inner)
    local = attack.local(view)
    assert local.balance(torch.ones(2), []).tolist() == [1.0, 0.5]
    stamped, expected = (a.tasks(X, Y)[0][0] for a in (local, inner.local(view)))
    assert torch.equal(stamped, expected)
    assert attack.attack is inner
