"""Update distances: of whom they are, what a rule would see, and that the run stays as it is."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import SmallImages, small_client, small_trainer, weights
from torch import Tensor

import leadfl_pl as fl
from leadfl_pl.diagnostics.update_distances import mean_distances

BURST = fl.BurstySchedule(period=2, burst=1, num_malicious=4)
SCALED = fl.ModelReplacement(fl.PatternBackdoor(), gamma=20.0)


class Sent(fl.FederatedCallback):
    """Keeps what the clients of each round sent."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, list[fl.ClientUpdate], Any]] = []

    def on_server_step(self, trainer: Any, pl_module: Any, updates: Any, result: Any) -> None:
        self.rounds.append((trainer.current_epoch, updates, result))


def fit(*callbacks: Any, ckpt_path: str | None = None, **settings: Any) -> tuple[Tensor, list[Any]]:
    report, client = fl.RunReport(), small_client(fl.LDP())
    defaults = {"aggregator": fl.MultiKrum(f=2), "attack": SCALED, "schedule": BURST}
    trainer = small_trainer(callbacks=[*callbacks, report], **defaults | settings)
    trainer.fit(client, datamodule=SmallImages(batch_size=8), ckpt_path=ckpt_path)
    return weights(client), report.rows


def means(updates: list[fl.ClientUpdate], malicious: set[int]) -> dict[str, float]:
    """The same, pair by pair."""
    good = [u.delta.double() for u in updates if u.client_id not in malicious]
    bad = [u.delta.double() for u in updates if u.client_id in malicious]
    values = {
        "norm/honest": [x.norm() for x in good],
        "norm/malicious": [x.norm() for x in bad],
        "distance/honest": [(a - b).norm() for a, b in combinations(good, 2)],
        "distance/malicious": [(a - b).norm() for a, b in combinations(bad, 2)],
        "distance/between": [(a - b).norm() for a, b in product(good, bad)],
    }
    return {f"updates/{k}": float(torch.stack(v).mean()) for k, v in values.items() if v}


def logged(row: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k.startswith("updates/")}


@pytest.mark.parametrize("space", ["params", "state"])
def test_every_round_has_the_means_over_what_was_sent(space: str) -> None:
    sent = Sent()
    _, rows = fit(fl.UpdateDistances(), sent, federation={"distance_space": space})
    assert [t for t, _, _ in sent.rounds] == [0, 1, 2]
    for row, (_, updates, result) in zip(rows, sent.rounds, strict=True):
        bad = {c for c, m in zip(result.client_ids, result.malicious, strict=True) if m}
        assert [u.client_id for u in updates] == list(result.client_ids)
        assert logged(row) == pytest.approx(means(updates, bad), rel=1e-7)
    assert len(logged(rows[0])) == 5  # attackers, crafted updates
    assert rows[0]["updates/norm/malicious"] > 2 * rows[0]["updates/norm/honest"]
    assert set(logged(rows[1])) == {"updates/norm/honest", "updates/distance/honest"}


def test_it_changes_nothing_of_the_run() -> None:
    end, rows = fit()
    measured, with_columns = fit(fl.UpdateDistances())
    assert torch.equal(measured, end)
    assert [{k: r[k] for k in rows[0]} for r in with_columns] == rows


class Broken(fl.NoDefense):
    """A client whose weights overflow."""

    def after_step(self, step: fl.LocalStep, state: object) -> None:
        if step.num_steps == 6:  # not where the defense is tried before the round
            step.params[0].fill_(float("inf"))


def test_malformed_updates_are_left_out() -> None:
    report, distances = fl.RunReport(), fl.UpdateDistances()
    trainer = small_trainer(attack=SCALED, schedule=BURST, callbacks=[distances, report])
    with pytest.warns(fl.RejectedUpdate):
        trainer.fit(small_client(Broken()), datamodule=SmallImages(batch_size=8))
    assert set(logged(report.rows[0])) == {"updates/norm/malicious", "updates/distance/malicious"}
    assert not logged(report.rows[1])


def test_one_update_has_a_norm_and_no_distance() -> None:
    assert mean_distances(torch.tensor([[3.0, 4.0]]), torch.tensor([True])) == {
        "norm/malicious": 5.0
    }


def test_a_checkpoint_of_an_evaluation_goes_on_with_the_rounds_numbers() -> None:
    best = ModelCheckpoint(
        dirpath="best", filename="{step}", monitor="val/clean_accuracy", save_top_k=-1,
        save_on_train_epoch_end=False,
    )  # fmt: skip
    _, rows = fit(fl.UpdateDistances(), best, enable_checkpointing=True)
    again = fit(fl.UpdateDistances(), ckpt_path="best/step=1.ckpt")[1]
    assert again == rows


def test_a_used_callback_leaves_nothing_for_another_run() -> None:
    distances = fl.UpdateDistances()
    fit(distances)
    again = ModelCheckpoint(
        dirpath="plain", filename="{step}", monitor="val/clean_accuracy", save_top_k=-1,
        save_on_train_epoch_end=False,
    )  # fmt: skip
    fit(again, enable_checkpointing=True)
    rows = fit(distances, ckpt_path="plain/step=1.ckpt")[1]
    assert [bool(logged(row)) for row in rows] == [False, True, True]
