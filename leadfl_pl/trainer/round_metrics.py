"""What became of a round, logged."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule


class RoundMetrics(Callback):
    """Logs the :class:`~leadfl_pl.federation.server.RoundResult` of every round."""

    def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        pl_module.log_dict(trainer.fit_loop.result.metrics())
