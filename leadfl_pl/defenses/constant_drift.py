"""Constant drift: what is left of LeadFL when its estimate of the Hessian is zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leadfl_pl.core.errors import require_choice, require_number
from leadfl_pl.core.values import LocalStep, takes_stacks
from leadfl_pl.defenses.base import ClientDefense, ParameterChoice, chosen, pick
from leadfl_pl.defenses.leadfl import Norm


class ConstantDrift(ClientDefense):
    r"""Constant drift: LeadFL's regularising step with :math:`\tilde H = 0`, a control for it.

    V = 1 then, so that in a tensor of p entries every entry moves alike, whatever the data:
    after each local step of a round but the first, as in LeadFL,

    .. math::
        W \leftarrow W - \eta\,\alpha\,R, \qquad
        R = \min(1/\sqrt{p},\, q) \text{ (l2)} \quad\text{or}\quad \min(1, q) \text{ (squared)}

    What LeadFL does and this does not is the work of the Hessian's estimate.

    Args:
        alpha: weight of the drift, >= 0; 0 is plain SGD.
        clip: elementwise clipping threshold q, > 0.
        norm: ``"l2"`` or ``"squared"``, see :class:`~leadfl_pl.LeadFL`.
        parameters: ``"all"`` trainable ones or ``"weights"`` only.

    Raises:
        ConfigError: a setting out of range.

    >>> W = torch.ones(16)
    >>> step = LocalStep(
    ...     ["weight"], [W], [], 0.1, 1, 9, False, lambda: None, torch.Generator())
    >>> _ = ConstantDrift(alpha=2.0, clip=1.0).after_step(step, [0])
    >>> W[0]  # 1 - 0.1 * 2 / sqrt(16)
    tensor(0.9500)

    References:
        Guthmann, Tan. Report on LeadFL: Client Self-Defense against Model Poisoning in Federated
        Learning (eq. 4-6, of which this is the case H = 0).
    """

    idle_first = "round"

    def __init__(
        self,
        alpha: float = 0.4,
        clip: float = 0.2,
        norm: Norm = "l2",
        parameters: ParameterChoice = "all",
    ) -> None:
        require_choice("ConstantDrift", "norm", norm, ("l2", "squared"))
        require_choice("ConstantDrift", "parameters", parameters, ("all", "weights"))
        require_number("ConstantDrift", "alpha", alpha, least=0)
        require_number("ConstantDrift", "clip", clip, above=0)
        self.alpha = alpha
        self.clip = clip
        self.norm: Norm = norm
        self.parameters: ParameterChoice = parameters

    @takes_stacks
    def start(self, names: Sequence[str], params: list[Tensor]) -> list[int]:
        return chosen(names, self.parameters)

    @takes_stacks
    def after_step(self, step: LocalStep, state: list[int]) -> list[int]:
        if step.step > 0:
            params, clients = pick(step.params, state), max(1, len(step.generators))
            power = 0.5 if self.norm == "l2" else 0.0
            drifts = [min((p.numel() / clients) ** -power, self.clip) for p in params]
            torch._foreach_sub_(params, [step.lr * self.alpha * drift for drift in drifts])
        return state
