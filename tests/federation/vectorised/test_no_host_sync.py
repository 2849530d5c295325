"""A local step of a stack of clients never waits for the device: CUDA graphs could capture it.

Checked without a GPU: on the meta device, where no value exists that could be read and a tensor
elsewhere would be a copy from the host; with noise, whose generator cannot live there, on a CPU,
where the operations that would wait are looked for.
"""

from __future__ import annotations

import copy

import pytest
import torch
from executions import Net
from test_contract_attacks import ATTACKS
from test_contract_defenses import DEFENSES
from torch.utils._python_dispatch import TorchDispatchMode

import leadfl_pl as fl
from leadfl_pl.core.values import takes_stacks
from leadfl_pl.federation.vectorised.round import Member, Settings, VectorisedRound


class Watch(TorchDispatchMode):
    """Raises on what a CUDA graph cannot capture: values read, shapes that depend on values.

    On the meta device, values do not exist, and a tensor elsewhere would be a copy to the GPU.
    """

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        assert name not in self.FORBIDDEN, f"{name} waits for the device"
        result = func(*args, **kwargs or {})
        for leaf in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                assert leaf.device.type == self.device, f"{name} on {leaf.device}"
        self.count += 1
        return result


ON_DATA = (
    "PatternBackdoor", "LabelFlip", "DBA", "DataPoisoning", "BlendedBackdoor", "EdgeCaseBackdoor",
)  # fmt: skip


def a_round(device: str, defense: fl.ClientDefense, attack: fl.Attack | None):
    """Two honest and two malicious clients, and the examples of their first two batches."""
    members = [
        Member(
            i, i, torch.arange(20), defense, attack if i > 1 else None,
            torch.Generator(), torch.Generator(), i,
        )
        for i in range(4)
    ]  # fmt: skip
    with torch.device(device):
        data = fl.ImageSet(torch.rand(20, 1, 8, 8), torch.zeros(20, dtype=torch.long))
        index = [{row: torch.zeros(8, dtype=torch.long) for row in range(4)} for _ in range(2)]
        net = Net()
        initial = [p.detach().clone() for p in net.parameters() if p.requires_grad]
        settings = Settings(data, 8, 1, None, 0.1, 0.9, lambda batch: batch, initial)
        made = VectorisedRound(net, members, [None] * 4, settings)
    return made, index


@pytest.mark.parametrize("attack", [*ON_DATA, None])
@pytest.mark.parametrize(
    ("name", "device"),
    [
        (n, d)
        for n, line in DEFENSES.items()
        for d in ("meta", "cpu")
        if d == "cpu" or not line.noisy
    ],
)
def test_a_local_step_reads_no_value_back(name: str, attack: str | None, device: str) -> None:
    defense = DEFENSES[name].make()
    attacking = copy.deepcopy(ATTACKS[attack].attack) if attack else fl.Attack()
    made, index = a_round(device, defense, attacking if attack != "DBA" else attacking.bar(1))
    made.step(made.blocks, 0, 0, index[0])  # the trigger moves to the device, once
    with Watch(device) as watch:
        made.step(made.blocks, 0, 1, index[1])
    assert watch.count > 50


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_watch_sees_a_value_that_is_read(device: str) -> None:
    class Reading(fl.ClientDefense):
        @takes_stacks
        def after_step(self, step, state):
            return step.params[0].sum() > 0 or None

    made, index = a_round(device, Reading(), fl.Attack())
    with pytest.raises(AssertionError, match="waits for the device"), Watch(device):
        made.step(made.blocks, 0, 0, index[0])
