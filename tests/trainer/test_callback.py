"""What every callback of a federation refuses."""

from __future__ import annotations

import pytest
from lightning.pytorch import Trainer
from tiny import SmallImages, small_client

import leadfl_pl as fl

KINDS = [
    kind
    for kind in (getattr(fl, name) for name in fl.__all__)
    if isinstance(kind, type) and fl.FederatedCallback in kind.__bases__
] + [fl.RunReport]


@pytest.mark.parametrize("kind", KINDS)
def test_another_trainer_is_refused(kind: type[fl.FederatedCallback]) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, callbacks=[kind()], accelerator="cpu", **quiet)
    with pytest.raises(fl.ConfigError, match=f"{kind.__name__} needs a FederatedTrainer, got Tra"):
        trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
