"""Which callbacks a Trainer has to call within local steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback

STEP_HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


def listens(callback: Callback) -> bool:
    """Whether the callback has a hook of its own within local steps."""
    return any(
        getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)
        for hook in STEP_HOOKS
    )


@contextmanager
def only_listeners(trainer: Any) -> Iterator[None]:
    """Within it the Trainer knows only callbacks that have something to do in a local step.

    It goes through all that it knows three times in each, to find that most do nothing.
    """
    callbacks = trainer.callbacks
    trainer.callbacks = [callback for callback in callbacks if listens(callback)]
    try:
        yield
    finally:
        trainer.callbacks = callbacks
