"""Attacks: on the data of the malicious clients and on the updates they send."""

from leadfl_pl.attacks.a3fl import A3FL
from leadfl_pl.attacks.alie import ALIE
from leadfl_pl.attacks.backdoor import Backdoor, PatternBackdoor, mgda_weight
from leadfl_pl.attacks.base import Attack, AttackWrapper, CraftedUpdates
from leadfl_pl.attacks.blended import BlendedBackdoor
from leadfl_pl.attacks.checks import check_attack, check_corrupted
from leadfl_pl.attacks.data_poisoning import DataPoisoning
from leadfl_pl.attacks.dba import DBA
from leadfl_pl.attacks.decay_timed import DecayTimed
from leadfl_pl.attacks.edge_case import EdgeCaseBackdoor
from leadfl_pl.attacks.fang import FangKrum, FangTrimmedMean
from leadfl_pl.attacks.ipm import IPM
from leadfl_pl.attacks.label_flip import LabelFlip
from leadfl_pl.attacks.min_max_sum import MinMax, MinSum
from leadfl_pl.attacks.model_replacement import ModelReplacement
from leadfl_pl.attacks.neurotoxin import Neurotoxin
from leadfl_pl.attacks.one_pixel import OnePixelBackdoor
from leadfl_pl.attacks.pgd import PGD
from leadfl_pl.attacks.semantic import Brightness, ChannelDominance, Feature, SemanticBackdoor
from leadfl_pl.attacks.within_spread import WithinHonestSpread

__all__ = [
    "A3FL",
    "ALIE",
    "DBA",
    "IPM",
    "PGD",
    "Attack",
    "AttackWrapper",
    "Backdoor",
    "BlendedBackdoor",
    "Brightness",
    "ChannelDominance",
    "CraftedUpdates",
    "DataPoisoning",
    "DecayTimed",
    "EdgeCaseBackdoor",
    "FangKrum",
    "FangTrimmedMean",
    "Feature",
    "LabelFlip",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "Neurotoxin",
    "OnePixelBackdoor",
    "PatternBackdoor",
    "SemanticBackdoor",
    "WithinHonestSpread",
    "check_attack",
    "check_corrupted",
    "mgda_weight",
]
