"""What must fit before a run starts, and stay the same when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torchmetrics import Metric

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.aggregators.base import check_rule
from leadfl_pl.attacks.base import overrides
from leadfl_pl.attacks.checks import check_attack, try_corrupt
from leadfl_pl.core.describe import callable_name, describe, first_difference, remembers_only_in
from leadfl_pl.core.errors import (
    FLOATS,
    LARGEST,
    ConfigError,
    errors_of,
    require_number,
    require_override,
    require_tensor,
    where,
)
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.defenses import ClientDefense, check_defense
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.config import Federation
from leadfl_pl.federation.server import RoundResult
from leadfl_pl.trainer.backdoor_evaluation import BackdoorEvaluation


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
        with errors_of(f"{type(federation.attack).__name__}.check"):
            federation.attack.check(datamodule.image_shape, datamodule.num_classes)
    check_network(client, datamodule)
    moves = client.evaluation_mode == "train" and any(True for _ in client.model.buffers())
    if moves and trainer.num_sanity_val_steps:
        raise ConfigError(
            "trainer.num_sanity_val_steps must be 0 where model.evaluation_mode is train, since a "
            "resumed run would move BatchNorm's buffers with it, "
            f"got num_sanity_val_steps = {trainer.num_sanity_val_steps}"
        )
    attacked = federation.attack and federation.num_malicious
    others_train = attacked or federation.aggregator.root_size
    if others_train and type(client).forward is not FederatedClient.forward:
        raise ConfigError(
            f"model = {type(client).__name__} must leave forward() as it is, because attackers, "
            "and a server with a root data set, train the network without it: put what it does "
            "into the network, model.model"
        )
    check_monitors(trainer)
    with errors_of(f"{type(federation.aggregator).__name__}.check_size"):
        federation.aggregator.check_size(ModelVector(client.model, federation.distance_space).d)
    check_root(federation.aggregator, datamodule)
    return client, datamodule


def check_network(client: FederatedClient, datamodule: FederatedDataModule) -> None:
    """Raises unless the network turns the data's images into one logit a class, by itself."""
    name = type(client.model).__name__
    if any(isinstance(part, nn.SyncBatchNorm) for part in client.modules()):
        raise ConfigError(
            f"model.model = {name} must have no SyncBatchNorm, which would "
            "mix the batch statistics of different clients: use BatchNorm or GroupNorm"
        )
    with errors_of(f"{type(datamodule).__name__}.val_dataloader"):
        batch = next(iter(datamodule.val_dataloader()))
    x, _ = client.trainer.precision_plugin.convert_input(batch)
    modes = [(part, part.training) for part in client.modules()]
    try:
        with torch.no_grad(), client.trainer.precision_plugin.forward_context():
            logits = client.eval()(x[:1].to(client.device))
    except Exception as error:
        raise ConfigError(
            f"model.model = {name} must take images of shape {tuple(datamodule.image_shape)}, the "
            f"shape of {type(datamodule).__name__}, but raised {where(error)}"
        ) from error
    finally:
        for part, training in modes:
            part.training = training
    require_tensor(
        f"model.model = {name} must give {datamodule.num_classes} logits an image, one a class:",
        logits,
        (1, datamodule.num_classes),
        *FLOATS,
    )
    if not bool((logits.abs() <= LARGEST).all()):
        raise ConfigError(
            f"model.model = {name} must give finite logits of at most {LARGEST} for images of "
            f"{type(datamodule).__name__}, got {logits.flatten().tolist()}"
        )


def check_monitors(trainer: Trainer) -> None:
    """Raises if a callback waits for a metric that is never logged.

    Diagnostics and classes from elsewhere may log anything, so that nothing is known where there
    are some.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    parts = [trainer.lightning_module, *callbacks]
    for module in (type(part).__module__ for part in parts):
        ours = module.startswith(("leadfl_pl.", "lightning."))
        if not ours or module.startswith("leadfl_pl.diagnostics."):
            return
    nothing = RoundResult((), (), (), (), (), *[torch.zeros(())] * 3)
    logged = ["epoch", "step", *nothing.metrics()]
    if trainer.limit_val_batches:
        logged += ["val/clean_accuracy"]
        measured = [c.attack for c in callbacks if isinstance(c, BackdoorEvaluation)]
        if any(overrides(attack, "trigger") for attack in measured):
            logged += [f"val/backdoor_accuracy{end}" for end in ("", "_all", "_avg")]
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor not in (None, *logged):
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} must have monitor one of "
                f"{', '.join(logged)}, got monitor = {monitor}"
            )


def check_root(aggregator: Aggregator, datamodule: FederatedDataModule) -> None:
    """Raises unless the training set has the examples that the rule's root data set takes."""
    available, name = len(datamodule.train_set.labels), type(aggregator).__name__
    require_number(name, "root_size", aggregator.root_size, least=0, whole=True)
    if aggregator.root_size > available:
        raise ConfigError(
            f"{name}: root_size must be <= {available}, the number of training examples, "
            f"got root_size = {aggregator.root_size}"
        )


def check_optimizers(trainer: Trainer, carry_momentum: bool) -> None:
    """Raises unless there is one optimizer, alone, whose momentum can be carried if it is to be."""
    stepped = [o for o in trainer.optimizers if all("lr" in group for group in o.param_groups)]
    names = [type(optimizer).__name__ for optimizer in stepped]  # without Lightning's for None
    schedulers = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
    if len(names) != 1 or schedulers:
        raise ConfigError(
            f"{type(trainer.lightning_module).__name__}.configure_optimizers must return one "
            f"optimizer and no scheduler, got {', '.join([*names, *schedulers]) or None}"
        )
    if carry_momentum and not isinstance(trainer.optimizers[0], torch.optim.SGD):
        raise ConfigError(
            "trainer.federation.carry_momentum must be false unless the optimizer is SGD, whose "
            f"momentum it carries, got {names[0]}"
        )


def check_methods(clients: Clients, num_classes: int) -> None:
    """Raises unless defense, attack and rule, tried once, return what they must."""
    named = [(n, p) for n, p in clients.client.model.named_parameters() if p.requires_grad]
    defense, attack = clients.client.defense, clients.federation.attack
    require_override("model.defense", defense, ClientDefense)
    theta = clients.vector.read()
    rng = torch.Generator(theta.device).manual_seed(0)
    n = clients.federation.clients_per_round
    wide = torch.promote_types(theta.dtype, torch.float32)  # as in a round
    updates = theta.new_empty(n, len(theta), dtype=wide).normal_(generator=rng)
    warn_of_idle_steps(clients)
    with (
        errors_of(f"model.defense = {type(defense).__name__}, tried once,"),
        remembers_only_in("the state that its methods return, one for each client", defense),
    ):
        check_defense(defense, [n for n, _ in named], [p for _, p in named])
    if attack is not None and clients.malicious_ids:
        with errors_of(f"trainer.federation.attack = {type(attack).__name__}, tried once,"):
            view = clients.view(0, clients.malicious_ids[0], None)
            attack.load_state_dict({})
            with remembers_only_in("its state_dict", attack):
                with clients.client.trainer.precision_plugin.train_step_context():
                    check_attack(attack, view, num_classes)
                try_corrupt(attack, updates)
                attack.load_state_dict({})
    rule = clients.federation.aggregator
    with errors_of(f"trainer.federation.aggregator = {type(rule).__name__}, tried once,"):
        check_rule(rule, updates)


def warn_of_idle_steps(clients: Clients) -> None:
    """Warns where clients take no local step in which their defense does anything."""
    defense = clients.client.defense
    if defense.idle_first is None:
        return
    by_epoch = defense.idle_first == "epoch"
    idle = sum(
        clients.num_steps(client_id) == 1 or (by_epoch and len(part) <= clients.batch_size)
        for client_id, part in enumerate(clients.parts)
    )
    if idle:
        rank_zero_warn(
            f"model.defense = {type(defense).__name__} does nothing in the first local step of "
            f"each {defense.idle_first}, and {idle} of {len(clients.parts)} clients take no other: "
            "take a smaller data.batch_size, or more local steps"
        )


def settings(federation: Federation, trainer: Trainer) -> dict[str, Any]:
    """All that must not change between the start of a run and its end, as plain data."""
    client, datamodule = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    parts = {k: m for k, m in client.named_children() if not isinstance(m, Metric)}
    return {
        "trainer": {
            "federation": _settings(federation, "max_failures"),
            "precision": trainer.precision,
            "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
            "limit_val_batches": str(trainer.limit_val_batches),  # 1 is a batch, 1.0 all
        },
        "model": _settings(client) | describe(parts),
        "data": describe(datamodule),
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
