"""A callback that sees what the clients of a round send."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.values import ClientUpdate
from leadfl_pl.federation.server import RoundResult


class FederatedCallback(Callback):
    """A Lightning callback with one hook more, for a look at the updates of a round.

    Raises:
        ConfigError: the Trainer is no :class:`~leadfl_pl.FederatedTrainer`.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit" and not hasattr(trainer, "federation"):
            name, kind = type(self).__name__, type(trainer).__name__
            raise ConfigError(f"{name} needs a FederatedTrainer, got {kind}")

    def on_server_step(
        self, trainer: Any, pl_module: Any, updates: list[ClientUpdate], result: RoundResult
    ) -> None:
        """Called after the server's step and before the evaluation, on every rank.

        Args:
            trainer: whose ``current_epoch`` is the round.
            pl_module: with the new global weights.
            updates: all that was sent, crafted ones included, in the cohort's order.
            result: which clients they are of, who is malicious, what was well-formed and used.
        """
