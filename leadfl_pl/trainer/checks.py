"""What must fit before a run starts, and stay the same when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.core.describe import describe
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.config import Federation

MAY_CHANGE = {"max_failures"}  # when a run goes on


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
    federation.aggregator.check_size(ModelVector(client.model, federation.measure).d)
    check_root(federation.aggregator, datamodule)
    return client, datamodule


def check_network(client: FederatedClient, datamodule: FederatedDataModule) -> None:
    """Raises unless the network turns the data's images into one logit a class, by itself."""
    if any(isinstance(part, nn.SyncBatchNorm) for part in client.modules()):
        raise ConfigError(
            f"model.model = {type(client.model).__name__} must have no SyncBatchNorm, which would "
            "mix the batch statistics of different clients: use BatchNorm or GroupNorm"
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


def settings(federation: Federation, trainer: Trainer) -> dict[str, Any]:
    """What must not change between the start of a run and its end, readable."""
    found = {f.name: getattr(federation, f.name) for f in fields(federation)}
    client = trainer.lightning_module
    found |= {key: getattr(client, key, None) for key in ("defense", "lr", "momentum")}
    return {key: describe(value) for key, value in found.items() if key not in MAY_CHANGE}


def check_same(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises unless the settings of a checkpoint are those of the run that goes on from it."""
    for key, value in current.items():
        if saved.get(key) != value:
            raise ConfigError(
                f"{key} must be {saved.get(key)}, as in the checkpoint, to go on with its run, "
                f"got {key} = {value}"
            )
