"""Whether local steps can do without Lightning's hooks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, Strategy

STEP_HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
STEP_METHODS = ("pre_backward", "backward", "post_backward", "optimizer_step")


def differs(part: object, base: type, names: tuple[str, ...]) -> bool:
    """Whether ``part`` has a method of its own for one of ``names`` of ``base``.

    >>> differs(Callback(), Callback, STEP_HOOKS)
    False
    """
    return any(
        getattr(getattr(part, name), "__func__", None) is not getattr(base, name) for name in names
    )


def is_plain(trainer: Any, client: LightningModule) -> bool:
    """Whether nobody has anything to do between a local step's gradient and its optimizer.

    Then ``loss.backward()`` and the bare optimizer do what ``manual_backward`` and Lightning's
    optimizer do, which go through all callbacks three times to find that out.
    """
    strategy = trainer.strategy
    base = DDPStrategy if isinstance(strategy, DDPStrategy) else Strategy
    return not (
        any(differs(callback, Callback, STEP_HOOKS) for callback in trainer.callbacks)
        or differs(client, LightningModule, (*STEP_HOOKS, "backward", "manual_backward"))
        or differs(strategy, base, STEP_METHODS)
        or differs(trainer.precision_plugin, Precision, STEP_METHODS)
        or not isinstance(trainer.profiler, PassThroughProfiler)
    )
