"""Who has a part of its own within a local step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, Strategy

from leadfl_pl.federation.client import FederatedClient

HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
PARTS = ("pre_backward", "backward", "post_backward", "optimizer_step")


def step_listener(client: FederatedClient) -> str | None:
    """What Lightning would call within a client's local steps, for a message; None: nothing.

    Then ``loss.backward()`` and the bare optimizer do what ``manual_backward`` and Lightning's
    optimizer do, which go through all callbacks three times a step to find that out.
    """
    if overridden := overridden_in_step(client):
        return overridden
    trainer: Any = client.trainer
    untimed = isinstance(trainer.profiler, PassThroughProfiler)
    return None if untimed else f"{type(trainer.profiler).__name__} times every step"


def overridden_in_step(client: FederatedClient) -> str | None:
    """What can change a client's local steps beside its own methods, for a message."""
    trainer: Any = client.trainer
    strategy, precision = trainer.strategy, trainer.precision_plugin
    unscaled = isinstance(precision, MixedPrecision) and precision.scaler is None  # bf16
    parents: list[tuple[object, type, tuple[str, ...]]] = [
        *((callback, Callback, HOOKS) for callback in trainer.callbacks),
        (client, LightningModule, (*HOOKS, "backward", "manual_backward")),
        (client, FederatedClient, ("training_step",)),
        (strategy, DDPStrategy if isinstance(strategy, DDPStrategy) else Strategy, PARTS),
        (precision, MixedPrecision if unscaled else Precision, PARTS),
    ]
    for part, parent, names in parents:
        for name in names:
            if getattr(getattr(part, name), "__func__", None) is not getattr(parent, name):
                return f"{type(part).__name__} overrides {name}()"
    return None
