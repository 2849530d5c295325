"""Attacks: on the data of the malicious clients and on the updates they send."""

from leadfl_pl.attacks.backdoor import PatternBackdoor, mgda_weight
from leadfl_pl.attacks.base import Attack, AttackWrapper

__all__ = ["Attack", "AttackWrapper", "PatternBackdoor", "mgda_weight"]
