"""Callbacks that measure why an attack lasts."""

from leadfl_pl.diagnostics.attack_effect import AttackEffect

__all__ = ["AttackEffect"]
