"""LDP as the LeadFL experiments run it: Laplace noise on every local step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from leadfl_pl.core.values import LocalStep, takes_stacks
from leadfl_pl.defenses.base import (
    LaplaceDefense,
    add_noise_,
    chosen,
    laplace_noise,
    pick,
)


class LDP(LaplaceDefense):
    r"""LDP: after each local step but the first, :math:`W \leftarrow W + \eta \Upsilon`.

    :math:`\Upsilon \sim \mathrm{Laplace}(0, s)` elementwise: FL-WBC without its mask.

    Args:
        scale: Laplace scale s, >= 0; 0 is plain SGD.
        formulation: ``"released"`` perturbs the weight tensors only and spares the first step of
            each local epoch, as the released LeadFL experiments do.
        parameters: ``"all"`` or ``"weights"``; ``"released"`` always takes the weights.

    Raises:
        ConfigError: a setting out of range.

    References:
        Zhu, Roos, Chen. LeadFL: Client Self-Defense against Model Poisoning in Federated
        Learning. ICML 2023 (the baseline called LDP there).

    Differences:
        1. Textbook local differential privacy clips the *update* and adds noise calibrated to
           the clipping bound and a privacy budget, once. This adds unclipped noise to the
           weights at every local step and gives no privacy guarantee.
    """

    @takes_stacks
    def start(self, names: Sequence[str], params: list[Tensor]) -> list[int]:
        return chosen(names, self.parameters)

    @takes_stacks
    def after_step(self, step: LocalStep, state: list[int]) -> list[int]:
        spared = step.epoch_start if self.formulation == "released" else step.step == 0
        if not spared:
            params = pick(step.params, state)
            noise = laplace_noise(params, self.scale, step.generator, step.generators)
            add_noise_(params, noise, step.lr)
        return state
