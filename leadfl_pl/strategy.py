"""Processes and collectives as DDP has them, without any reduction of gradients."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry


class FederatedStrategy(DDPStrategy):
    """Every rank trains its own clients; only their updates meet, once a round.

    Wrapping the module for data-parallel training would average the gradients of different
    clients. Here the module stays as it is, and starts equal on every rank.
    """

    strategy_name = "federated"

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
