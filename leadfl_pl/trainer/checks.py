"""What must fit before a run starts, and stay the same when it goes on."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torchmetrics import Metric

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.attacks.checks import check_attack
from leadfl_pl.core.describe import callable_name, describe, first_difference
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.values import ClientUpdate, Cohort
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.defenses import check_defense
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.config import Federation


def check_run(
    trainer: Trainer, federation: Federation
) -> tuple[FederatedClient, FederatedDataModule]:
    """The Trainer's client and data, after making sure that all parts of the run fit."""
    client, datamodule = trainer.lightning_module, getattr(trainer, "datamodule", None)
    if not isinstance(client, FederatedClient):
        raise ConfigError(f"model must be a FederatedClient, got {type(client).__name__}")
    if not isinstance(datamodule, FederatedDataModule):
        raise ConfigError(f"data must be a FederatedDataModule, got {type(datamodule).__name__}")
    if federation.attack is not None:
        federation.attack.check(datamodule.image_shape, datamodule.num_classes)
    check_network(client, datamodule)
    federation.aggregator.check_size(ModelVector(client.model, federation.distance_space).d)
    check_root(federation.aggregator, datamodule)
    return client, datamodule


def check_network(client: FederatedClient, datamodule: FederatedDataModule) -> None:
    """Raises unless the network turns the data's images into one logit a class, by itself."""
    if any(isinstance(part, nn.SyncBatchNorm) for part in client.modules()):
        raise ConfigError(
            f"model.model = {type(client.model).__name__} must have no SyncBatchNorm, which would "
            "mix the batch statistics of different clients: use BatchNorm or GroupNorm"
        )
    if not any(p.requires_grad for p in client.model.parameters()):
        raise ConfigError(
            f"model.model = {type(client.model).__name__} must have trainable parameters, got none"
        )
    x, _ = client.trainer.precision_plugin.convert_input(next(iter(datamodule.val_dataloader())))
    modes = [(part, part.training) for part in client.modules()]
    try:
        with torch.no_grad():
            shape = client.eval()(x[:1].to(client.device)).shape
    except RuntimeError as error:
        raise ConfigError(
            f"model.model = {type(client.model).__name__} must take images of shape "
            f"{tuple(datamodule.image_shape)}, the shape of {type(datamodule).__name__}: {error}"
        ) from error
    finally:
        for part, training in modes:
            part.training = training
    if tuple(shape) != (1, datamodule.num_classes):
        raise ConfigError(
            f"model.model = {type(client.model).__name__} must give {datamodule.num_classes} "
            f"logits an image, one a class, got an output of shape {tuple(shape)[1:]}"
        )


def check_root(aggregator: Aggregator, datamodule: FederatedDataModule) -> None:
    """Raises unless the training set has the examples that the rule's root data set takes."""
    if aggregator.root_size > (available := len(datamodule.train_set.labels)):
        raise ConfigError(
            f"{type(aggregator).__name__}: root_size must be <= {available}, the number of "
            f"training examples, got root_size = {aggregator.root_size}"
        )


def check_methods(clients: Clients, num_classes: int) -> None:
    """Raises unless the defense and the attack, tried once, return what they must."""
    named = [(n, p) for n, p in clients.client.model.named_parameters() if p.requires_grad]
    defense, attack = clients.client.defense, clients.federation.attack
    try:
        check_defense(defense, [n for n, _ in named], [p for _, p in named])
        if attack is not None and clients.malicious_ids:
            check_attack(attack, clients.view(0, clients.malicious_ids[0], None), num_classes)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the defense or the attack, tried once, raised {_where(error)}"
        ) from error


def check_clients(
    updates: Mapping[int, ClientUpdate | None], cohort: Cohort, error: Exception | None
) -> None:
    """Raises if all clients of a kind failed in the first round: that is their method's error.

    Args:
        updates: by position in the cohort; None for a client that failed.
        cohort: of the round.
        error: what a client raised that this process trained.
    """
    if cohort.round > 0:
        return
    for kind in set(cohort.malicious):
        members = [position for position, m in enumerate(cohort.malicious) if m == kind]
        if all(updates[position] is None for position in members):
            raise ConfigError(
                f"all {len(members)} {'malicious' if kind else 'honest'} clients failed in the "
                f"first round, with {_where(error)}"
            ) from error


def _where(error: BaseException | None) -> str:
    if error is None:
        return "an error in another process"
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f"{error!r} in {frame.name}() at {frame.filename}, line {frame.lineno}"


def settings(federation: Federation, trainer: Trainer) -> dict[str, Any]:
    """All that must not change between the start of a run and its end, as plain data."""
    client, datamodule = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    parts = {k: m for k, m in client.named_children() if not isinstance(m, Metric)}
    return {
        "trainer": {
            "federation": _settings(federation, "max_failures"),
            "precision": trainer.precision,
            "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
            "limit_val_batches": trainer.limit_val_batches,
        },
        "model": _settings(client) | describe(parts),
        "data": _settings(datamodule, "trainer", "data_dir"),
    }


def _settings(owner: object, *may_change: str) -> dict[str, Any]:
    names = [k for k in vars(owner) if not k.startswith("_") and k not in may_change]
    settings: dict[str, Any] = describe({k: vars(owner)[k] for k in names})
    return {"class": callable_name(type(owner))} | settings


def check_same(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises unless the settings of a checkpoint are those of the run that goes on from it."""
    if difference := first_difference(saved, current):
        key, before, now = difference
        raise ConfigError(
            f"{key} must be {before}, as in the checkpoint, to go on with its run, "
            f"got {key} = {now}"
        )
