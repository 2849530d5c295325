"""Whether the theorem of :class:`~leadfl_pl.Contraction` holds in a run."""

from __future__ import annotations

from math import floor
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from torch import nn

from leadfl_pl.aggregators import FedAvg
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data import ImageSet
from leadfl_pl.data.base import TensorBatches
from leadfl_pl.defenses import Contraction
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.step_hooks import overridden_in_step
from leadfl_pl.models import Normalize


def check_theorem(trainer: Any, client: LightningModule) -> tuple[nn.Sequential, nn.Linear]:
    """The network as (all before the linear layer, the linear layer), if the theorem holds.

    It is proved for these classes and no subclass of them, which is why they are asked for.

    Raises:
        ConfigError: an assumption of docs/contraction.md does not hold in this run.
    """
    if type(client) is not FederatedClient:
        _refuse("model", "FederatedClient", type(client).__name__)
    network, defense, federation = client.model, client.defense, trainer.federation
    if (parts := linear_parts(network)) is None:
        right = "one trainable torch.nn.Linear after a flatten, such as SoftmaxRegression"
        _refuse("model.model", right, type(network).__name__)
    if type(defense) is not Contraction:
        _refuse("model.defense", "Contraction", type(defense).__name__)
    if defense.parameters != "all":
        _refuse("model.defense.parameters", "all", defense.parameters)
    if type(rule := federation.aggregator) is not FedAvg:
        _refuse("trainer.federation.aggregator", "FedAvg", type(rule).__name__)
    if federation.server_lr != 1:
        _refuse("trainer.federation.server_lr", 1, federation.server_lr)
    if federation.distance_space != "params":
        _refuse("trainer.federation.distance_space", "params", federation.distance_space)
    if overridden := overridden_in_step(client):
        _refuse("trainer", "without a part in local steps", overridden)
    limit = trainer.limit_val_batches
    if isinstance(limit, int) or limit != 1.0:
        _refuse("trainer.limit_val_batches", 1.0, limit)
    if client.momentum != 0:
        _refuse("model.momentum", 0, client.momentum)
    if trainer.precision not in ("32-true", "64-true"):
        _refuse("trainer.precision", "32 or 64", trainer.precision)
    matmul = torch.get_float32_matmul_precision()
    if trainer.precision == "32-true" and matmul != "highest":
        _refuse("torch's float32 matmul precision", "highest", matmul)
    largest = 2 / smoothness(*parts, trainer.datamodule.train_set)
    if client.lr > largest:
        rounded = floor(largest * 1e6) / 1e6
        _refuse("model.lr", f"<= 2 / beta = {rounded} for these training images", client.lr)
    return parts


def _refuse(key: str, right: object, got: object) -> NoReturn:
    raise ConfigError(
        f"RecoveryCertificate holds for convex models under FedAvg only: {key} must be {right}, "
        f"got {key.rpartition('.')[2]} = {got}"
    )


def linear_parts(network: nn.Module) -> tuple[nn.Sequential, nn.Linear] | None:
    """A linear network as (all before the linear layer, the linear layer); None for another."""
    *before, last = [*network.children()] or [network]
    if (
        type(last) is nn.Linear
        and [type(layer) for layer in before] in ([nn.Flatten], [Normalize, nn.Flatten])
        and type(network).forward is nn.Sequential.forward
        and all(p.requires_grad for p in last.parameters())
    ):
        return nn.Sequential(*before), last
    return None


def smoothness(features: nn.Module, last: nn.Linear, data: ImageSet) -> float:
    r"""A :math:`\beta` of the cross-entropy of a linear network on any batch of the data.

    The Hessian is the batch's mean of :math:`(\mathrm{diag}(p) - p p^\top) \otimes
    \tilde x \tilde x^\top` with :math:`\tilde x = (x, 1)`, or x without a bias; the first factor's
    eigenvalues are at most 1/2. Hence :math:`\beta = \max \lVert\tilde x\rVert^2 / 2`.

    >>> import torch
    >>> images = torch.full((1, 1, 2, 2), 3.0)
    >>> smoothness(nn.Flatten(), nn.Linear(4, 2), ImageSet(images, torch.zeros(1)))  # (36 + 1) / 2
    18.5

    Args:
        features: from images (B, C, H, W) to x (B, D).
        last: from x to logits.
        data: all that clients may train on.
    """
    batches = TensorBatches(data, 1000)
    most = max(float(features(x).double().square().sum(dim=1).max()) for x, _ in batches)
    return (most + (last.bias is not None)) / 2
