"""A half-life that follows the training, tried on the digits; see ../README.md."""

from typing import Any

from lightning.pytorch import Callback


class GrowingHalfLife(Callback):
    """Sets Contraction's T to ``half_life`` (1 + t / ``rounds``) in round t."""

    def __init__(self, half_life: float, rounds: float) -> None:
        self.half_life, self.rounds = half_life, rounds

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.defense.half_life = self.half_life * (1 + trainer.current_epoch / self.rounds)
