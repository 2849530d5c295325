"""Client-side defenses: what an honest client does besides plain local training."""

from leadfl_pl.defenses.base import ClientDefense, NoDefense
from leadfl_pl.defenses.checks import check_defense, check_update
from leadfl_pl.defenses.constant_drift import ConstantDrift
from leadfl_pl.defenses.contraction import Contraction
from leadfl_pl.defenses.fed_prox import FedProx
from leadfl_pl.defenses.fl_wbc import FLWBC
from leadfl_pl.defenses.ldp import LDP
from leadfl_pl.defenses.leadfl import LeadFL, leadfl_gradient
from leadfl_pl.defenses.sam import SAM

__all__ = [
    "FLWBC",
    "LDP",
    "SAM",
    "ClientDefense",
    "ConstantDrift",
    "Contraction",
    "FedProx",
    "LeadFL",
    "NoDefense",
    "check_defense",
    "check_update",
    "leadfl_gradient",
]
