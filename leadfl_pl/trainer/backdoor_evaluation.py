"""Backdoor accuracy, measured in any Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from leadfl_pl.attacks import Attack
from leadfl_pl.metrics import AverageOverRounds, BackdoorAccuracy


class BackdoorEvaluation(Callback):
    """Measures a backdoor in validation and test, in any Trainer whose batches are (x, y).

    Logs ``val/backdoor_accuracy`` (triggered images whose true class is not the target),
    ``val/backdoor_accuracy_all`` (target-class images counted too, as the released LeadFL code
    does) and, over the epochs of a fit, ``val/backdoor_accuracy_avg``.

    Args:
        attack: the attack whose trigger is measured.
    """

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.accuracy = BackdoorAccuracy()
        self.accuracy_all = BackdoorAccuracy()
        self.average = AverageOverRounds()
        self.last_averaged = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.current_epoch == 0:  # else the same Trainer fits on
            for metric in (self.accuracy, self.accuracy_all, self.average):
                metric.reset()
            self.last_averaged = -1

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        x, y = batch
        if (triggered := self.attack.trigger(x, y)) is None:
            return
        images, target, mask = triggered
        with trainer.precision_plugin.forward_context():
            predictions = pl_module(images).argmax(dim=1)
        for metric in (self.accuracy, self.accuracy_all):
            metric.to(predictions.device)
        self.accuracy.update(predictions, target, mask)
        self.accuracy_all.update(predictions, target)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage = "test" if trainer.testing else "val"
        if self.accuracy.update_count == 0:
            return
        value = self.accuracy.compute()
        pl_module.log(f"{stage}/backdoor_accuracy", value)
        pl_module.log(f"{stage}/backdoor_accuracy_all", self.accuracy_all.compute())
        self.accuracy.reset()
        self.accuracy_all.reset()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if trainer.current_epoch > self.last_averaged:  # else: evaluated again on resume
                self.average.update(value.cpu())
                self.last_averaged = trainer.current_epoch
            pl_module.log(f"{stage}/backdoor_accuracy_avg", self.average.compute().float())

    def on_test_batch_end(self, *args: Any) -> None:
        self.on_validation_batch_end(*args)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {
            "average": self.average.state_dict(),
            "last_averaged": self.last_averaged,
            "attack": self.attack.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average.reset()  # what it has computed is of another run
        self.average.load_state_dict(state_dict["average"])
        self.last_averaged = state_dict["last_averaged"]
        self.attack.load_state_dict(state_dict.get("attack", {}))
