"""LeadFL in one's own project: the client with its defense in one class."""

from __future__ import annotations

from typing import Literal

from torch import nn

from leadfl_pl.defenses import LeadFL
from leadfl_pl.defenses.base import ParameterChoice
from leadfl_pl.defenses.leadfl import Formulation, Norm
from leadfl_pl.federation.client import FederatedClient


class LeadFLClient(FederatedClient):
    """An honest client that runs LeadFL, ready for one's own project.

    Args:
        model: the network; images (B, C, H, W) to logits (B, classes).
        alpha, clip, norm, formulation, parameters: see :class:`~leadfl_pl.LeadFL`.
        lr, momentum, evaluation_mode: see :class:`FederatedClient`.
    """

    def __init__(
        self,
        model: nn.Module,
        alpha: float = 0.4,
        clip: float = 0.2,
        norm: Norm = "l2",
        formulation: Formulation = "corrected",
        parameters: ParameterChoice = "all",
        lr: float = 0.01,
        momentum: float = 0.0,
        evaluation_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        defense = LeadFL(alpha, clip, norm, formulation, parameters)
        super().__init__(model, defense, lr, momentum, evaluation_mode)
