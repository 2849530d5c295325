"""What a client asks of the Trainer that runs it, whosever that is."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import Precision

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.defenses import ClientDefense, NoDefense

SCALER = "a gradient scaler, which 16 needs, would scale what defenses and attacks see"


def steps_left(trainer: Trainer) -> int | None:
    """How many steps of the optimizer a fit has before it; None: not known, or no end of them."""
    steps = trainer.estimated_stepping_batches - trainer.global_step  # -1 without a loader's length
    return int(steps) if 0 < steps < math.inf else None


def check_scaler(plugin: Precision) -> None:
    """Raises if the precision, which may have come as a plugin, scales gradients."""
    if getattr(plugin, "scaler", None) is not None:
        name = type(plugin).__name__
        raise ConfigError(
            f"trainer.precision or plugins must have no scaler, got one of {name}: {SCALER}"
        )


def check_alone(trainer: Trainer, defense: ClientDefense) -> None:
    """Raises :class:`ConfigError` unless ``defense`` does all it does in a plain Trainer."""
    name = type(defense).__name__
    if type(defense).finish is not ClientDefense.finish:
        raise ConfigError(
            f"model.defense must not define finish(), which changes what a client sends, in a "
            f"Trainer that sends nothing, got {name}: use a FederatedTrainer, "
            "ClientDefenseCallback (NVFlare) or client_defense_mod (Flower)"
        )
    if type(defense) is NoDefense:
        return
    check_scaler(trainer.precision_plugin)
    if trainer.ckpt_path:
        raise ConfigError(
            f"ckpt_path must be null in a plain Trainer with model.defense = {name}, since no "
            "checkpoint has what a defense knows of its round, "
            f"got ckpt_path = {trainer.ckpt_path}: load the weights"
        )
