"""A run may start from the weights of another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The checkpoint of a run of two rounds without an attack."""
    trainer, path = small_trainer(rounds=2), tmp_path / "clean.ckpt"
    trainer.fit(small_client(), datamodule=SmallImages())
    trainer.save_checkpoint(path)
    return path


def start(path: Path, **kwargs: object) -> tuple[fl.FederatedTrainer, fl.FederatedClient]:
    client = small_client()
    trainer = small_trainer(federation={"start_from": str(path)}, **kwargs)
    trainer.fit(client, datamodule=SmallImages())
    return trainer, client


def test_round_0_starts_from_the_weights_and_from_nothing_else(trained: Path) -> None:
    by_hand = small_client()
    by_hand.load_state_dict(torch.load(trained, weights_only=True)["state_dict"])
    trainer = small_trainer(rounds=1)
    trainer.fit(by_hand, datamodule=SmallImages())
    _, client = start(trained, rounds=1)
    assert torch.equal(weights(client), weights(by_hand))
    fresh = small_client()
    small_trainer(rounds=1).fit(fresh, datamodule=SmallImages())
    assert not torch.equal(weights(client), weights(fresh))


def test_a_run_that_goes_on_does_not_start_again(trained: Path, tmp_path: Path) -> None:
    _, whole = start(trained, rounds=3)
    trainer, _ = start(trained, rounds=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed = small_client()
    trainer = small_trainer(rounds=3, federation={"start_from": str(trained)})
    trainer.fit(resumed, datamodule=SmallImages(), ckpt_path=tmp_path / "two.ckpt")
    assert torch.equal(weights(resumed), weights(whole))


def test_the_initial_model_of_a_defense_is_the_one_started_from(trained: Path) -> None:
    trainer = small_trainer(rounds=1, federation={"start_from": str(trained)})
    client = small_client(fl.Contraction(2, anchor="initial"))
    trainer.fit(client, datamodule=SmallImages())
    saved = torch.load(trained, weights_only=True)["state_dict"]
    expected = [saved[f"model.{name}"] for name, _ in client.model.named_parameters()]
    initial = trainer.fit_loop.clients.initial
    assert initial is not None
    assert all(torch.equal(a, b) for a, b in zip(initial, expected, strict=True))


def test_a_checkpoint_of_another_network_and_no_file_are_refused(
    trained: Path, tmp_path: Path
) -> None:
    content = torch.load(trained, weights_only=True)
    content["state_dict"]["model.6.weight"] = torch.zeros(1)
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(
        fl.ConfigError,
        match=r"trainer\.federation\.start_from = .*other.ckpt cannot be used: it holds another",
    ):
        start(tmp_path / "other.ckpt")
    with pytest.raises(
        fl.ConfigError,
        match=r"trainer\.federation\.start_from = .*none.ckpt cannot be used: there is no such",
    ):
        start(tmp_path / "none.ckpt")
