"""A callback that sees what the clients of a round send."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from leadfl_pl.core.errors import require_federation
from leadfl_pl.core.values import ClientUpdate
from leadfl_pl.federation.server import RoundResult


class FederatedCallback(Callback):
    """A Lightning callback for a federated run, with a hook for a look at a round's updates.

    What it logs in ``on_train_epoch_end`` is in ``rounds.csv`` if it comes before
    :class:`~leadfl_pl.RunReport`, as it does in a config's ``diagnostics`` and wherever a Trainer
    is given no report.

    Raises:
        ConfigError: the Trainer is no :class:`~leadfl_pl.FederatedTrainer`.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            require_federation(self, trainer)

    def on_server_step(
        self, trainer: Any, pl_module: Any, updates: list[ClientUpdate], result: RoundResult
    ) -> None:
        """Called after the server's step and before the evaluation, on every rank.

        It cannot log: keep what is to be logged for ``on_train_epoch_end``, and in ``state_dict``,
        since a run that goes on from a checkpoint of the evaluation does not come here again.

        Args:
            trainer: whose ``current_epoch`` is the round.
            pl_module: with the new global weights.
            updates: all that was sent, in the cohort's order: crafted and malformed ones included,
                none if every client failed. To be read only; clone what is to be kept, since one
                row may keep all of them in memory.
            result: who is malicious, whose updates were well-formed (``received``) and used.
        """
