"""Callbacks that measure why an attack lasts."""

from leadfl_pl.diagnostics.attack_effect import AttackEffect
from leadfl_pl.diagnostics.attack_effect_estimate import AttackEffectEstimate
from leadfl_pl.diagnostics.curvature import Curvature
from leadfl_pl.diagnostics.recovery_certificate import RecoveryCertificate
from leadfl_pl.diagnostics.update_distances import UpdateDistances

__all__ = [
    "AttackEffect",
    "AttackEffectEstimate",
    "Curvature",
    "RecoveryCertificate",
    "UpdateDistances",
]
