"""Every local step of the released code, replayed through our clients in Lightning's Trainer."""

from __future__ import annotations

import json
import re
from collections import OrderedDict

import pytest
import torch
from conftest import VECTORS, Vectors
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader

from leadfl_pl import (
    FLWBC,
    LDP,
    FederatedClient,
    LeadFL,
    MaliciousClient,
    NoDefense,
    PatternBackdoor,
)

# "defense_half" switches LeadFL off after half of the epochs; it has no counterpart here
RECORDED = json.loads((VECTORS / "released_code.json").read_text())["train"]
CASES = [case for case in RECORDED if not case.get("cfg_overrides")]
DEFENSES = {
    None: NoDefense(),
    "LDP": LDP(scale=0.2, formulation="released"),
    "WBC": FLWBC(scale=0.2, formulation="released"),
    "LeadFL": LeadFL(alpha=0.4, clip=0.2, formulation="released"),
}
NETS = {
    "Lin": lambda: nn.Sequential(OrderedDict(fc=nn.Linear(5, 3))),
    "Conv": lambda: nn.Sequential(
        OrderedDict(conv=nn.Conv2d(1, 2, 3), act=nn.ReLU(), flat=nn.Flatten(), fc=nn.Linear(32, 3))
    ),
    "Mal": lambda: nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 2, 5, stride=3),
            bn=nn.BatchNorm2d(2),
            act=nn.ReLU(),
            flat=nn.Flatten(),
            fc=nn.Linear(128, 10),
        )
    ),
}


class Recorder(Callback):
    """Collects the weights after each local step; starts a new round at the epochs given."""

    def __init__(self, new_rounds: set[int]) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.new_rounds = new_rounds

    def on_train_epoch_start(self, trainer: Trainer, pl_module: FederatedClient) -> None:
        if trainer.current_epoch in self.new_rounds:
            pl_module.start_round(noise_seed=0, num_steps=1)

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        state = pl_module.model.state_dict()
        self.states.append({k: v.clone() for k, v in state.items()})


@pytest.mark.parametrize("case", CASES, ids=[c["tag"] for c in CASES])
def test_every_local_step_is_the_released_one(
    case: dict, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = case["tag"]
    numbers = [re.fullmatch(rf"{tag}/noise(\d+)/fc.weight", name) for name in vectors.arrays]
    noise = iter(sorted(int(found[1]) for found in numbers if found))

    def recorded_noise(like: list[torch.Tensor], *_: object) -> list[torch.Tensor]:
        found = vectors.state(f"{tag}/noise{next(noise)}")
        return [found[n] for n in case["params"] if "weight" in n]

    monkeypatch.setattr("leadfl_pl.defenses.ldp.laplace_noise", recorded_noise)
    monkeypatch.setattr("leadfl_pl.defenses.fl_wbc.laplace_noise", recorded_noise)
    model = NETS[case["net"]]().double()
    model.load_state_dict(vectors.state(f"{tag}/init"))
    if case["malicious"]:
        attack = PatternBackdoor(high=2.8214867115, low=-0.4242129624)
        client = MaliciousClient(model, attack, lr=case["lr"], momentum=0.1)
    else:
        client = FederatedClient(model, DEFENSES[case["defense"]], lr=case["lr"], momentum=0.1)
    batches = [
        (vectors[f"{case['batches']}/x{i}"], vectors[f"{case['batches']}/y{i}"])
        for i in range(case["n_batches"])
    ]
    repeats = case["epochs"] * case["rounds"]
    recorder = Recorder(set(range(1, repeats)) if case["rounds"] > 1 else set())
    Trainer(
        max_epochs=repeats,
        accelerator="cpu",
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(client, DataLoader(batches, batch_size=None))
    assert len(recorder.states) == case["n_local_steps"]
    assert next(noise, None) is None, "noise that the released code drew"
    for i, state in enumerate(recorder.states):
        for name, expected in vectors.state(f"{tag}/step{i}").items():
            torch.testing.assert_close(
                state[name], expected, rtol=0, atol=1e-12, msg=lambda m, i=i, n=name: f"{i} {n} {m}"
            )
