"""Processes and collectives as DDP has them, without any reduction of gradients."""

from __future__ import annotations

import atexit
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

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
        raise RankLostError(LOST) from error


def reword(record: logging.LogRecord) -> bool:
    """A logging filter: one clear error for what Lightning's observer of processes logs.

    The observer kills all processes when one is gone. It looks every five seconds, so in a long
    round it sees that before any collective does.
    """
    if "Forcefully terminating" in record.getMessage():
        record.msg, record.args = f"error: {LOST}", ()
    return True


def deal(costs: Sequence[float], world_size: int) -> list[list[int | None]]:
    """Which client each rank trains in each wave, longest first; None: no client is left for it.

    In a wave the ranks take the longest of the clients that are left, the least loaded rank the
    longest of them.

    >>> deal([1.0, 5.0, 2.0, 4.0, 1.0], world_size=2)
    [[1, 0, 4], [3, 2, None]]

    Args:
        costs: of each client, in any unit.
        world_size: number of ranks.

    Returns:
        For each rank a list, equally long for all, of positions in ``costs``.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    hands: list[list[int | None]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for start in range(0, len(order), world_size):
        wave: list[int | None] = [*order[start : start + world_size]]
        wave += [None] * (world_size - len(wave))
        ranks = sorted(range(world_size), key=lambda r: (loads[r], r))
        for rank, client in zip(ranks, wave, strict=True):
            hands[rank].append(client)
            loads[rank] += 0.0 if client is None else costs[client]
    return hands


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
        equal = "(round/|train/loss|train/regulariser|(val|test)/backdoor_accuracy)"
        message = rf".*recommended to use `self.log\('{equal}.*sync_dist=True"
        warnings.filterwarnings("ignore", message=message)
        # Lightning's gather goes through the variant that has gradients.
        warnings.filterwarnings("ignore", message=".*nn.functional.all_gather is deprecated")

    def configure_ddp(self) -> None:
        """Makes the module equal on all ranks instead of wrapping it."""
        assert self.lightning_module is not None
        for tensor in self.lightning_module.state_dict(keep_vars=True).values():
            torch.distributed.broadcast(tensor.detach(), src=0)

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        strategy_registry.register(
            cls.strategy_name, cls, description="One client a rank, no gradient reduction"
        )


if FederatedStrategy.strategy_name not in StrategyRegistry:
    FederatedStrategy.register_strategies(StrategyRegistry)
