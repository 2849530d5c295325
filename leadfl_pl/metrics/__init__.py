"""torchmetrics for training under attack."""

from leadfl_pl.metrics.accuracy import AverageOverRounds, BackdoorAccuracy, CleanAccuracy
from leadfl_pl.metrics.attacker_detection import AttackerDetection, Detection, detection_rates
from leadfl_pl.metrics.backdoor_lifespan import (
    BackdoorLifespan,
    Lifespan,
    lifespans,
    restricted_mean,
)
from leadfl_pl.metrics.recovery_half_life import RecoveryHalfLife, half_life

__all__ = [
    "AttackerDetection",
    "AverageOverRounds",
    "BackdoorAccuracy",
    "BackdoorLifespan",
    "CleanAccuracy",
    "Detection",
    "Lifespan",
    "RecoveryHalfLife",
    "detection_rates",
    "half_life",
    "lifespans",
    "restricted_mean",
]
