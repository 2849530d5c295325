"""FL-WBC: Laplace noise where the local loss is flat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leadfl_pl.core.values import LocalStep, takes_stacks
from leadfl_pl.defenses.base import (
    LaplaceDefense,
    add_noise_,
    chosen,
    clones,
    laplace_noise,
    pick,
)


def mask_noise_(noise: list[Tensor], grads: list[Tensor], last_grads: list[Tensor]) -> None:
    """Zeroes ``noise`` in place wherever abs(g_i - g_{i-1}) > abs(noise).

    >>> noise = torch.tensor([0.5, -0.5, 0.1])
    >>> mask_noise_([noise], [torch.tensor([0.4, 0.6, 0.1])], [torch.zeros(3)])
    >>> noise
    tensor([0.5000, 0.0000, 0.1000])
    """
    difference = torch._foreach_sub(grads, last_grads)
    for n, d in zip(noise, difference, strict=True):
        n.masked_fill_(d.abs_() > n.abs(), 0.0)


class FLWBCState(NamedTuple):
    """The gradients of the previous local step, before any noise."""

    where: list[int]  # positions of the parameters it acts on
    grads: list[Tensor] | None


class FLWBC(LaplaceDefense):
    r"""FL-WBC: after each local step but the first, noise in the null space of the Hessian.

    :math:`\Upsilon \sim \mathrm{Laplace}(0, s)` elementwise, kept only where
    :math:`|g_i - g_{i-1}| \le |\Upsilon|`; then :math:`W \leftarrow W + \eta \Upsilon`.

    Args:
        scale: Laplace scale s, >= 0; 0 is plain SGD.
        formulation: ``"released"`` perturbs the weight tensors only and starts anew at each local
            epoch, as the released LeadFL experiments do.
        parameters: ``"all"`` or ``"weights"``; ``"released"`` always takes the weights.

    Raises:
        ConfigError: a setting out of range.

    References:
        Sun, Li, DiValentin, Hassanzadeh, Chen, Li. FL-WBC: Enhancing Robustness against Model
        Poisoning Attacks in Federated Learning from a Client Perspective. NeurIPS 2021.

    Differences:
        1. The paper says which parameters only by its network; its code takes the weight tensors
           (``parameters="weights"``).
        2. The released LeadFL code draws the noise with NumPy's global generator.
    """

    @takes_stacks
    def start(self, names: Sequence[str], params: list[Tensor]) -> FLWBCState:
        return FLWBCState(chosen(names, self.parameters), None)

    @takes_stacks
    def after_step(self, step: LocalStep, state: FLWBCState) -> FLWBCState:
        grads = pick(step.grads, state.where)
        forget = self.formulation == "released" and step.epoch_start
        if state.grads is not None and not forget:
            params = pick(step.params, state.where)
            noise = laplace_noise(params, self.scale, step.generator, step.generators)
            mask_noise_(noise, grads, state.grads)
            add_noise_(params, noise, step.lr)
        return FLWBCState(state.where, clones(grads))
