"""Processes and collectives as DDP has them, without any reduction of gradients."""

from __future__ import annotations

import atexit
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGKILL
from typing import Any

import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies import DDPStrategy, Strategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

LOST_CONNECTION = re.compile(r"gloo|NCCL|[Cc]onnection (reset|closed|refused)|[Bb]roken pipe")

LOST = (
    "another process of this run has stopped, see its own output; the last checkpoint is whole: "
    "go on with ckpt_path = last"
)


class RankLostError(RuntimeError):
    """Another process of the run has stopped, so this one cannot go on."""


@contextmanager
def lost_ranks(world_size: int) -> Iterator[None]:
    """Turns what a collective raises when another process is gone into one clear error."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or LOST_CONNECTION.search(str(error))
        if world_size == 1 or not lost:
            raise
        cause = str(error).partition("\n")[0] if "NCCL" in str(error) else ""  # maybe this one's
        raise RankLostError(f"{LOST} ({cause})" if cause else LOST) from error


def reword(record: logging.LogRecord) -> bool:
    """A logging filter: one clear error for what Lightning's observer of processes logs.

    The observer kills all processes when one is gone. It looks every five seconds, so in a long
    round it sees that before any collective does.
    """
    if "Forcefully terminating" in record.getMessage():
        record.msg, record.args = f"error: {LOST}", ()
    return True


def kill_others(strategy: Strategy) -> None:
    """Kills the processes that this one started, and keeps their observer from killing it."""
    launcher = strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(SIGKILL)
        launcher.procs.clear()


def leave_group() -> None:
    """Ends the process group, with its threads, while the interpreter is whole.

    A thread of gloo that still holds a tensor when the interpreter goes aborts the process, after a
    run that had succeeded. Lightning leaves a group of NCCL at exit, one of gloo never.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class FederatedStrategy(DDPStrategy):
    """Every rank trains its own clients; only their updates meet, once a round.

    Wrapping the module for data-parallel training would average the gradients of different
    clients. Here the module stays as it is, and starts equal on every rank.
    """

    strategy_name = "federated"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logging.getLogger(_ChildProcessObserver.__module__).addFilter(reword)

    def setup_environment(self) -> None:
        super().setup_environment()
        atexit.unregister(leave_group)  # of an earlier fit
        atexit.register(leave_group)
        # What is logged of a round is equal on all ranks: there is nothing to synchronise.
        equal = "(round/|attack_effect/|certificate/|train/(loss|regulariser)|(val|test)/backdoor_)"
        message = rf".*recommended to use `self.log\('{equal}.*sync_dist=True"
        warnings.filterwarnings("ignore", message=message)
        # Lightning's gather goes through the variant that has gradients.
        warnings.filterwarnings("ignore", message=".*nn.functional.all_gather is deprecated")

    def configure_ddp(self) -> None:
        """Makes the module equal on all ranks instead of wrapping it."""
        assert self.lightning_module is not None
        for tensor in self.lightning_module.state_dict().values():
            value = tensor.contiguous()  # whatever the memory format
            torch.distributed.broadcast(value, src=0)
            tensor.copy_(value)


StrategyRegistry.register(
    FederatedStrategy.strategy_name,
    FederatedStrategy,
    description="One client a rank, no gradient reduction",
    override=True,
)
