"""What the Trainer sees of either execution, what is refused, and how auto chooses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from executions import FLOAT64, PATTERN, Net, client, distance, train
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import NetWithBatchNorm, SmallImages, small_trainer, weights
from torch import nn

import leadfl_pl as fl
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.vectorised import VectorisedClients, choice


class Record(Callback):
    """The hooks of the clients, and the global weights that they see."""

    def __init__(self) -> None:
        self.clients: list[int] = []
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.clients.append(batch.client_id)
        self.seen.append(weights(pl_module))


def test_every_client_has_its_hooks_and_they_see_the_global_weights() -> None:
    records = []
    for execution in ("sequential", "vectorised"):
        record, model = Record(), client()
        before = weights(model)
        trainer = small_trainer(callbacks=[record], rounds=1, federation={"execution": execution})
        trainer.fit(model, datamodule=SmallImages(batch_size=8))
        assert all(torch.equal(seen, before) for seen in record.seen)
        records.append(record.clients)
    assert records[0] == records[1]
    assert len(records[0]) == 7


def test_the_same_seed_gives_the_same_bits_and_the_global_generator_plays_no_part() -> None:
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        sent, _ = train("vectorised", fl.FLWBC(), PATTERN)
        ends.append(torch.cat([u.delta for u in sent]))
        assert torch.initial_seed() == seed
    assert torch.equal(*ends)


def fit(execution: str, net: type[nn.Module] = Net, model=None, **kwargs: Any):
    trainer = small_trainer(federation={"execution": execution}, rounds=1, **kwargs)
    trainer.fit(model or client(net), datamodule=SmallImages(batch_size=8))
    return trainer


def test_dropout_is_refused_by_its_name() -> None:
    with pytest.raises(fl.ConfigError, match=r"because 3 \(Dropout\) draws random numbers"):
        fit("vectorised", NetWithBatchNorm)


class Branching(fl.DigitsNet):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def test_a_network_that_vmap_cannot_run_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"does not run under torch.vmap: .*data-dependent"):
        fit("vectorised", Branching)


class OwnLoss(fl.FederatedClient):
    def compute_gradient(self, batch, backward):
        return super().compute_gradient(batch, backward)


class Adam(fl.FederatedClient):
    def configure_optimizers(self):
        return torch.optim.Adam(self.model.parameters(), lr=self.lr)


class Decay(fl.FederatedClient):
    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=self.lr, weight_decay=0.1)


class HeadOnly(fl.FederatedClient):
    def configure_optimizers(self):
        return torch.optim.SGD(self.model[-1].parameters(), lr=self.lr)


class OwnGradientElsewhere(fl.FederatedClient):
    def gradient_at(self, batch, backward, params):
        return super().gradient_at(batch, backward, params)


class OwnBackward(fl.FederatedClient):
    def manual_backward(self, loss, *args, **kwargs):
        super().manual_backward(2 * loss)


class Hook(Callback):
    def on_after_backward(self, trainer, pl_module) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "callbacks", "message"),
    [
        (OwnLoss, [], r"OwnLoss overrides compute_gradient\(\)"),
        (OwnBackward, [], r"OwnBackward overrides manual_backward\(\)"),
        (Adam, [], "the optimizer must be SGD"),
        (Decay, [], "the optimizer must be SGD"),
        (HeadOnly, [], "the optimizer must have all trainable parameters"),
        (OwnGradientElsewhere, [], r"OwnGradientElsewhere overrides gradient_at\(\)"),
        (fl.FederatedClient, [Hook()], r"Hook overrides on_after_backward\(\)"),
    ],
)
def test_what_would_be_passed_over_is_refused(kind, callbacks, message) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        fit("vectorised", model=kind(Net(), lr=0.05), callbacks=callbacks)
    clients = fit("auto", model=kind(Net(), lr=0.05), callbacks=callbacks).fit_loop.clients
    assert type(clients) is Clients


def test_no_other_execution() -> None:
    with pytest.raises(fl.ConfigError, match=r"execution must be one of .* got execution = fast"):
        fit("fast")


# ---------------------------------------------------------------------- auto


def test_auto_measures_without_moving_anything(monkeypatch) -> None:
    sent, _ = train("sequential", fl.FLWBC(), PATTERN)
    for seconds, expected in (([1.0, 0.1], VectorisedClients), ([0.1, 1.0], Clients)):
        times = iter(seconds)

        def fake(run, times=times) -> float:
            run()
            return next(times)

        monkeypatch.setattr(choice, "_seconds", fake)
        found, trainer = train("auto", fl.FLWBC(), PATTERN)
        assert type(trainer.fit_loop.clients) is expected
        for u, v in zip(found, sent, strict=True):
            assert distance(u.delta, v.delta) <= FLOAT64


def test_auto_takes_the_faster_one_for_the_whole_rank(monkeypatch) -> None:
    monkeypatch.setattr(choice, "_seconds", lambda run: next(times))
    for one, together, expected in ((1.0, 6.9, "vectorised"), (1.0, 7.1, "sequential")):
        times = iter([one, together])
        assert fit("auto").fit_loop.clients.execution == expected


def test_auto_runs_on_real_times() -> None:
    fit("auto")
    slow, fast = (choice._seconds(lambda s=s: time.sleep(s)) for s in (0.02, 0.0))
    assert 0 <= fast < 0.02 <= slow


def test_auto_is_sequential_where_memory_is_short_for_the_trial(monkeypatch) -> None:
    def short(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(choice.StackedModel, "gradients", short)
    assert fit("auto").fit_loop.clients.execution == "sequential"


def test_auto_is_sequential_where_vectorised_is_refused() -> None:
    assert fit("auto", NetWithBatchNorm).fit_loop.clients.execution == "sequential"


@pytest.mark.parametrize("chosen", ["sequential", "vectorised"])
def test_a_resumed_run_keeps_the_choice(chosen: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choice, "measure", lambda together: (chosen, "so"))

    def run(rounds: int, **kwargs: Any) -> fl.FederatedTrainer:
        trainer = small_trainer(
            rounds=rounds,
            attack=PATTERN,
            federation={"execution": "auto"},
            callbacks=[ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)],
            enable_checkpointing=True,
        )
        trainer.fit(client(defense=fl.FLWBC()), datamodule=SmallImages(batch_size=8), **kwargs)
        return trainer

    end = weights(run(3).lightning_module)
    run(1)
    other = {"sequential": "vectorised", "vectorised": "sequential"}[chosen]
    monkeypatch.setattr(choice, "measure", lambda together: (other, "the load has changed"))
    resumed = run(3, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.fit_loop.clients.execution == chosen
    assert torch.equal(weights(resumed.lightning_module), end)
