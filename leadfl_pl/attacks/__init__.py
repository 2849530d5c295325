"""Attacks: on the data of the malicious clients and on the updates they send."""

from leadfl_pl.attacks.backdoor import PatternBackdoor, mgda_weight
from leadfl_pl.attacks.base import Attack

__all__ = ["Attack", "PatternBackdoor", "mgda_weight"]
