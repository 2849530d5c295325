"""What does not fit is one sentence before a run starts, and what fits is taken."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import SmallImages, small_client, small_trainer, weights
from torch import Tensor, nn

import leadfl_pl as fl


def fit(client: fl.FederatedClient | None = None, **kwargs) -> fl.FederatedTrainer:
    trainer = small_trainer(rounds=1, **kwargs)
    trainer.fit(client or small_client(), datamodule=SmallImages(batch_size=8))
    return trainer


def configured(*parts: str) -> fl.FederatedClient:
    """A client whose optimizers and schedulers have these names."""

    class Own(fl.FederatedClient):
        def configure_optimizers(self):
            kinds = [getattr(torch.optim, part) for part in parts if part != "StepLR"]
            optimizers = [kind(self.model.parameters(), lr=0.1) for kind in kinds]
            scheduler = torch.optim.lr_scheduler.StepLR
            return optimizers, [scheduler(optimizers[0], 1) for part in parts if part == "StepLR"]

    return Own(small_client().model)


@pytest.mark.parametrize("execution", ["sequential", "auto"])
@pytest.mark.parametrize("parts", [("SGD", "StepLR"), ("SGD", "Adam"), ()], ids=str)
def test_what_no_local_step_would_use_is_refused(parts: tuple[str, ...], execution: str) -> None:
    message = f"Own.configure_optimizers must return one .* got {', '.join(parts) or None}"
    with pytest.raises(fl.ConfigError, match=message):
        fit(configured(*parts), federation={"execution": execution})


def test_only_the_momentum_of_sgd_is_carried() -> None:
    fit(configured("RMSprop"))
    with pytest.raises(fl.ConfigError, match=r"carry_momentum must be false unless .* RMSprop"):
        fit(configured("RMSprop"), federation={"carry_momentum": True})


MEASURED = fl.BackdoorEvaluation(fl.PatternBackdoor())


@pytest.mark.parametrize(
    ("monitor", "settings", "right"),
    [
        ("val/backdoor_accuracy", {"attack": fl.PatternBackdoor()}, True),
        ("val/backdoor_accuracy", {"attack": fl.ALIE()}, False),  # without a trigger
        ("val/backdoor_accuracy", {}, False),
        ("val/backdoor_accuracy", {"callbacks": [MEASURED]}, True),
        ("val/clean_accuracy", {}, True),
        ("val/clean_accuracy", {"limit_val_batches": 0}, False),
        ("round/selected", {"limit_val_batches": 0}, True),
    ],
)  # fmt: skip
def test_a_monitor_is_a_metric_that_is_logged(monitor, settings, right: bool, tmp_path) -> None:
    best = ModelCheckpoint(tmp_path, monitor=monitor, save_on_train_epoch_end=True)
    settings = settings | {"callbacks": [*settings.get("callbacks", []), best]}
    if right:
        fit(enable_checkpointing=True, default_root_dir=tmp_path, **settings)
        assert best.best_model_path
    else:
        with pytest.raises(fl.ConfigError, match=f"ModelCheckpoint must have .* = {monitor}"):
            fit(enable_checkpointing=True, default_root_dir=tmp_path, **settings)


class Recurrent(nn.Module):
    """Makes a state of the default dtype in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(64, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.cell(x.flatten(1), torch.zeros(len(x), 8)))
        return logits


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
@pytest.mark.parametrize(
    "attack", [fl.A3FL(steps=1, unlearning_steps=1), fl.DecayTimed(fl.PatternBackdoor())]
)
def test_a_network_may_make_tensors_of_the_default_dtype(attack: fl.Attack, precision: str) -> None:
    fit(fl.FederatedClient(Recurrent()), attack=attack, precision=precision)


def test_a_sanity_check_that_would_move_buffers_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"num_sanity_val_steps must be 0 .* got .* = 2"):
        fit(small_client(evaluation_mode="train"), num_sanity_val_steps=2)
    fit(fl.FederatedClient(Recurrent(), evaluation_mode="train"), num_sanity_val_steps=2)
    fit(num_sanity_val_steps=2)


class Drawn(fl.RandomSchedule):
    def cohort(self, population: fl.Population, round: int) -> fl.Cohort:
        cohort = super().cohort(population, round)
        ids, malicious = map(np.array, (cohort.client_ids, cohort.malicious))
        return fl.Cohort(round, tuple(ids), tuple(malicious))


def test_ids_that_numpy_drew_leave_checkpoints_that_can_be_loaded(tmp_path) -> None:
    path = tmp_path / "a.ckpt"
    fit(schedule=Drawn(), federation={"carry_momentum": True}).save_checkpoint(path)
    torch.load(path, weights_only=True)


def test_lightning_gives_no_rank_a_part_of_a_loader_of_ones_own() -> None:
    trainer = small_trainer(use_distributed_sampler=True)
    assert not trainer._accelerator_connector.use_distributed_sampler


@pytest.mark.parametrize(
    ("defense", "batch_size", "epochs", "said"),
    [
        (fl.LeadFL(formulation="released"), 20, 2, "each epoch, and 12 of 12 clients"),
        (fl.LDP(), 20, 1, "each round, and 12 of 12"),
        (fl.FedProx(), 20, 1, "each round, and 12 of 12"),
        (fl.LDP(formulation="released"), 4, None, "each epoch, and 12 of 12"),
        (fl.FLWBC(), 20, 2, None),
        (fl.LeadFL(formulation="released"), 19, 1, None),
        (fl.Contraction(), 20, 1, None),
    ],
)
def test_a_defense_that_would_do_nothing_is_named(defense, batch_size, epochs, said) -> None:
    ends = []
    for client in (small_client(defense), small_client()):
        steps = {"local_epochs": epochs, "local_steps": None if epochs else 1}
        trainer = small_trainer(rounds=1, federation=steps)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            trainer.fit(client, datamodule=SmallImages(batch_size=batch_size))
        found = [str(w.message) for w in heard if "does nothing" in str(w.message)]
        assert len(found) == bool(said and not ends)
        assert all(said in message for message in found)
        ends.append(weights(client))
    assert torch.equal(*ends) == bool(said)


class Locked(fl.FedAvg):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_rule_that_cannot_be_copied_is_named() -> None:
    with pytest.raises(fl.ConfigError, match=r"aggregator = Locked, copied, raised TypeError"):
        fit(aggregator=Locked())


class Kernel(nn.Module):
    """A network whose one parameter is a vector and no "weight"."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) * self.kernel).view(len(x), -1)[:, :10]


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (
            fl.LDP(parameters="weights"),
            r"parameters = weights, .* weight in their names, got k",
        ),
        (fl.LeadFL(formulation="released"), r"parameters = weights, which formulation = released"),
        (fl.Contraction(), r"matrices needs .* two dimensions or more, got kernel: take .* = all"),
    ],
)
def test_a_choice_of_no_parameter_is_named(defense: fl.ClientDefense, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        fit(fl.FederatedClient(Kernel(), defense))


def test_numpys_numbers_are_numbers() -> None:
    attack = fl.PatternBackdoor(target=np.int64(3))
    fit(attack=attack, schedule=fl.ForcedRounds(fl.RandomSchedule(), np.array([0]), 2))
