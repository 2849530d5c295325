"""SAM: sharpness-aware minimisation on the client."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leadfl_pl.core.errors import require_number
from leadfl_pl.core.values import LocalStep, takes_stacks
from leadfl_pl.defenses.base import ClientDefense, clones, per_client

TINY = 1e-12  # of a gradient of zero, which then moves nothing


class SAM(ClientDefense):
    r"""SAM: the gradient of a local step is taken uphill, where the loss is about the highest.

    With the gradient :math:`g(W)` of the batch's loss, a local step is

    .. math::
        W_{i+1} = W_i - \eta\; g\bigl(W_i + \rho\, g_i / \lVert g_i\rVert_2\bigr),
        \qquad g_i = g(W_i),

    the norm being that of all parameters together. It prefers flat minima, as LeadFL does by
    other means. No defense by intent: it is here as a control, what flatness alone does to a
    backdoor. A local step costs two passes.

    Args:
        rho: how far uphill, in the L2 norm of the parameters, >= 0; 0 is plain SGD.

    Raises:
        ConfigError: rho < 0.

    One step by hand on the loss 3/2 W^2 from W = 1, with eta = 0.1 and rho = 0.5: plain SGD goes to
    1 - 0.1 * 3, and SAM to 1 - 0.1 * 3 * 1.5.

    >>> W, defense = torch.ones(1), SAM(rho=0.5)
    >>> state = defense.start(["weight"], [W])
    >>> step = LocalStep(
    ...     ["weight"], [W.sub_(0.3)], [torch.tensor([3.0])], 0.1, 0, 1, True, lambda: None,
    ...     torch.Generator(), gradient_at=lambda params: [3 * params[0]])
    >>> _ = defense.after_step(step, state)
    >>> W
    tensor([0.5500])

    References:
        Foret, Kleiner, Mobahi, Neyshabur. Sharpness-Aware Minimization for Efficiently Improving
        Generalization. ICLR 2021.

    Differences:
        1. With momentum, the optimizer's buffer collects the gradients at W_i: SAM's correction
           of a step is not part of it.
        2. The second pass leaves BatchNorm's running statistics alone, as is usual; the paper
           does not say. It draws dropout anew.
        3. The correction is that of an SGD step: with an optimizer that does not go -eta g, such as
           Adam, this is not SAM.
    """

    def __init__(self, rho: float = 0.05) -> None:
        require_number("SAM", "rho", rho, least=0)
        self.rho = rho

    @takes_stacks
    def start(self, names: Sequence[str], params: list[Tensor]) -> list[Tensor]:
        return clones(params)

    @takes_stacks
    def after_step(self, step: LocalStep, state: list[Tensor]) -> list[Tensor]:
        """``state`` is W_i."""
        if not self.rho:
            return state
        assert step.gradient_at is not None
        clients = len(step.generators) or 1
        norms = [torch.linalg.vector_norm(g.reshape(clients, -1), dim=1) for g in step.grads]
        scale = self.rho / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + TINY)  # (m,)
        scales = [per_client(scale, g) if step.generators else scale[0] for g in step.grads]
        uphill = torch._foreach_add(state, torch._foreach_mul(step.grads, scales))
        change = torch._foreach_sub(step.gradient_at(list(uphill)), step.grads)
        torch._foreach_add_(step.params, change, alpha=-step.lr)
        torch._foreach_copy_(state, step.params)
        return state
