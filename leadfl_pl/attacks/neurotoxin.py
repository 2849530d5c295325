"""Neurotoxin: a backdoor in the coordinates that honest clients hardly move."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, AttackWrapper
from leadfl_pl.core.errors import require_number
from leadfl_pl.core.values import AttackerView


def spared(update: list[Tensor], share: float) -> list[Tensor]:
    """Masks of the coordinates that are not among the ``share`` largest, over all tensors.

    A coordinate that did not move at all is always spared.

    >>> spared([torch.tensor([1.0, -4.0]), torch.tensor([3.0, 2.0])], share=0.5)
    [tensor([ True, False]), tensor([False,  True])]
    """
    flat = torch.cat([u.flatten().abs() for u in update])
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[flat.topk(round(share * len(flat))).indices] = False
    mask |= flat == 0
    parts = mask.split([u.numel() for u in update])
    return [part.view_as(u) for part, u in zip(parts, update, strict=True)]


class Neurotoxin(AttackWrapper):
    r"""Attackers train only what the server's last step moved little.

    The gradient of each local step is set to zero in the ``share`` of all coordinates in which
    :math:`|\theta_t - \theta_{t-1}|` is largest: honest clients will hardly overwrite the rest. In
    round 0 there is no last step and nothing is projected.

    Args:
        attack: on the data of the malicious clients.
        share: k, in [0, 1); 0 is the plain attack.

    Raises:
        ConfigError: share out of range.

    References:
        Zhang, Panda, Song, Yang, Mahoney, Mittal, Gonzalez, Ramchandran. Neurotoxin: Durable
        Backdoors in Federated Learning. ICML 2022.

    Differences:
        1. The paper's algorithm ranks the coordinates by the aggregate of the last round, and so
           does this; its authors' code ranks them by a gradient on clean data.
        2. With ``balance="mgda"`` the tasks are balanced before the projection.
        3. With ``carry_momentum`` an attacker's momentum from an earlier round moves the other
           coordinates as well.
        4. A defense that the attacker runs (``defended_attackers``) acts after the projection.
    """

    def __init__(self, attack: Attack, share: float = 0.05) -> None:
        super().__init__(attack)
        require_number("Neurotoxin", "share", share, least=0, below=1)
        self.share = share
        self._masks: list[Tensor] | None = None  # of a round, one for each trainable parameter

    def local(self, view: AttackerView) -> Attack:
        local = copy.copy(self)
        local.attack = self.attack.local(view)
        if view.last_update is not None:
            local._masks = spared(view.last_update, self.share)
        return local

    def project(self, gradients: list[Tensor]) -> list[Tensor]:
        projected = self.attack.project(gradients)
        if self._masks is None:
            return projected
        return [g * mask for g, mask in zip(projected, self._masks, strict=True)]
