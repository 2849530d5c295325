"""Settings as plain data: what differs is told apart, and what is equal is equal."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from tiny import SmallImages, small_client, small_trainer
from torchvision.transforms import InterpolationMode, Resize

import leadfl_pl as fl
from leadfl_pl.core.describe import describe


@pytest.mark.parametrize("value", [np.float64(0.5), np.int64(3), np.bool_(True)])
def test_numpys_numbers_are_pythons(value: np.generic) -> None:
    assert describe(value) == value.item()
    assert type(describe(value)) is type(value.item())


def test_members_of_an_enumeration_and_arguments_of_a_partial_function_are_told_apart() -> None:
    resizes = [Resize(4, m) for m in (InterpolationMode.BILINEAR, InterpolationMode.NEAREST)]
    assert describe(resizes[0]) != describe(resizes[1])
    assert describe(partial(int, base=2)) != describe(partial(int, base=3))
    json.dumps(describe([*resizes, partial(int, base=2)]))


def test_a_sweep_over_numpys_numbers_can_be_resumed() -> None:
    def fit(alpha: float, lr: float, seed: int, rounds: int, **settings) -> fl.FederatedTrainer:
        trainer = small_trainer(
            rounds=rounds, callbacks=[fl.RunReport("run")], federation={"seed": seed},
            enable_checkpointing=True, default_root_dir="run",
        )  # fmt: skip
        client = fl.FederatedClient(small_client().model, fl.LeadFL(alpha=alpha), lr=lr)
        trainer.fit(client, datamodule=SmallImages(batch_size=8), **settings)
        return trainer

    fit(np.float64(0.25), np.float64(0.05), np.int64(3), rounds=1)
    assert fit(0.25, 0.05, 3, rounds=2, ckpt_path="last").current_epoch == 2
