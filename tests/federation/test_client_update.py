"""One client's round: what it is told, what it sends, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from tiny import SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl
from leadfl_pl.federation.client_update import LocalTask, client_update, local_batches


class Counting(fl.ClientDefense):
    """Puts down which step of how many it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def after_step(self, step: fl.LocalStep, state: object) -> object:
        self.seen.append((step.step, step.num_steps))
        return state


@pytest.mark.parametrize("execution", ["sequential", "vectorised"])
@pytest.mark.parametrize(
    "length", [{"local_epochs": 3}, {"local_epochs": None, "local_steps": 5}], ids=str
)
def test_a_defense_knows_how_many_steps_its_client_takes(execution: str, length: dict) -> None:
    defense = Counting()
    client = fl.FederatedClient(fl.DigitsNet(), defense, lr=0.1)
    settings = {"execution": execution, "num_malicious": 0} | length
    trainer = small_trainer(rounds=1, federation=settings)
    trainer.fit(client, datamodule=SmallImages(batch_size=8, split=fl.QuantitySkew()))
    seen = defense.seen[2:]  # the first two are a trial before the round
    clients = trainer.fit_loop.clients
    expected = [clients.num_steps(c) for c in trainer.federation.cohort(0).client_ids]
    if "local_steps" in length:
        assert set(expected) == {5}
    else:
        assert len(set(expected)) > 1  # clients of unequal size
    assert sorted(total for step, total in seen if step == 0) == sorted(expected)
    assert sorted(total for step, total in seen if step == total - 1) == sorted(expected)
    assert all(step < total for step, total in seen)


def test_in_a_plain_trainer_the_whole_fit_is_counted() -> None:
    defense = Counting()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(small_client(defense), datamodule=SmallImages(batch_size=16))
    assert defense.seen == [(i, 30) for i in range(30)]


def task(client_id: int, num_steps: int = 5) -> LocalTask:
    data = SmallImages()
    data.setup()
    return LocalTask(0, 2, client_id, data.train_set.take(torch.arange(20)), 8, num_steps)


@pytest.fixture
def client() -> fl.FederatedClient:
    """A client that a federation has trained for a round, and can train again."""
    client = small_client(fl.FLWBC())
    small_trainer(rounds=1).fit(client, datamodule=SmallImages(batch_size=8))
    return client


def test_an_update_is_a_function_of_its_task_and_leaves_the_global_model(
    client: fl.FederatedClient,
) -> None:
    vector = client.trainer.fit_loop.clients.vector
    before = weights(client)
    torch.manual_seed(3)
    first = client_update(client, vector, task(4))
    other = client_update(client, vector, task(5))
    torch.manual_seed(4)
    again = client_update(client, vector, task(4))
    assert torch.equal(first.delta, again.delta)
    assert not torch.equal(first.delta, other.delta)
    assert torch.equal(weights(client), before)
    assert torch.initial_seed() == 4
    assert (first.client_id, first.num_examples) == (4, 20)


def test_the_global_model_is_back_after_an_exception(client: fl.FederatedClient) -> None:
    class Stuck(fl.ClientDefense):
        def after_step(self, step: fl.LocalStep, state: object) -> object:
            raise RuntimeError("stuck")

    before = weights(client)
    client.defense = Stuck()
    with pytest.raises(RuntimeError, match="stuck"):
        client_update(client, client.trainer.fit_loop.clients.vector, task(4))
    assert torch.equal(weights(client), before)
    assert all(p.grad is None or not p.grad.any() for p in client.parameters())


def test_local_steps_go_through_the_data_as_often_as_needed() -> None:
    batches = list(local_batches(task(0, num_steps=7), torch.Generator().manual_seed(0)))
    assert [start for start, _ in batches] == [True, False, False, True, False, False, True]
    assert [len(y) for _, (_, y) in batches] == [8, 8, 4, 8, 8, 4, 8]
