"""PGD: malicious training that never leaves a ball around the global model."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, AttackWrapper
from leadfl_pl.core.errors import require_number


def project_(params: list[Tensor], centre: list[Tensor], radius: float) -> None:
    r"""Moves the parameters, in place, to the nearest point of an L2 ball, over all tensors.

    :math:`W \leftarrow C + \min(1, r / \lVert W - C\rVert)\,(W - C)`. No host synchronisation.

    >>> params = [torch.tensor([4.0]), torch.tensor([5.0])]
    >>> project_(params, [torch.tensor([1.0]), torch.tensor([1.0])], radius=2.5)
    >>> params
    [tensor([2.5000]), tensor([3.])]
    """
    offsets = torch._foreach_sub(params, centre)
    norms = torch._foreach_norm(offsets)
    norm = torch.linalg.vector_norm(torch.stack(norms))
    factor = (radius / norm).clamp_max(1)
    outside = norm > radius
    for p, c, offset in zip(params, centre, offsets, strict=True):
        p.copy_(torch.where(outside, c + factor * offset, p))


class PGD(AttackWrapper):
    r"""Attackers train inside the L2 ball of radius epsilon around the global model.

    Every ``every`` local steps, and after the last one, the trainable parameters are projected:
    :math:`W \leftarrow W_t + \min(1, \epsilon / \lVert W - W_t\rVert)\,(W - W_t)`. So the update
    has a norm of epsilon at most, and a rule that clips at epsilon or more leaves it as it is.

    :class:`~leadfl_pl.ModelReplacement` around it is *PGD with model replacement*: the update is
    scaled after the projection, and leaves the ball.

    Args:
        attack: on the data of the malicious clients.
        epsilon: radius, in the scale of the parameters, > 0.
        every: local steps between two projections; with more, the attackers leave the ball in
            between.

    Raises:
        ConfigError: a setting out of range.

    References:
        Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos. Attack of the
        Tails. NeurIPS 2020 (PGD attack with and without model replacement). Sun, Kairouz, Suresh,
        McMahan. Can You Really Backdoor Federated Learning? arXiv:1911.07963, 2019 (norm-bounded
        attack).

    Differences:
        1. A defense that the attacker runs (``defended_attackers``) acts before the projection.
        2. Sun et al. divide epsilon by the factor of the model replacement, so that the scaled
           update is in the ball; here that is for the settings to say.
    """

    def __init__(self, attack: Attack | None = None, epsilon: float = 1.0, every: int = 1) -> None:
        super().__init__(attack)
        require_number("PGD", "epsilon", epsilon, above=0)
        require_number("PGD", "every", every, least=1, whole=True)
        self.epsilon, self.every = epsilon, every

    def constrain(
        self, params: list[Tensor], start: list[Tensor], step: int, num_steps: int
    ) -> None:
        self.attack.constrain(params, start, step, num_steps)
        if (step + 1) % self.every == 0 or step + 1 == num_steps:
            project_(params, start, self.epsilon)
