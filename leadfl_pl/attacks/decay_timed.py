"""Bursts that the attackers time by the decay of their backdoor."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, AttackWrapper, overrides
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.values import AttackerView

CHUNK = 256  # images at a time


@torch.no_grad()
def backdoor_accuracy(attack: Attack, view: AttackerView) -> float:
    """Share of the client's triggered images that the received model sends where wanted.

    The model is evaluated in eval mode, and every module has its former mode again afterwards. 0
    where no image of the client counts.
    """
    dtype = next(p.dtype for p in view.model.parameters() if p.is_floating_point())
    modes = [(module, module.training) for module in view.model.modules()]
    hits = total = torch.zeros((), dtype=torch.long, device=view.labels.device)
    view.model.eval()
    try:
        chunks = zip(view.images.split(CHUNK), view.labels.split(CHUNK), strict=True)
        for x, y in chunks:
            triggered = attack.trigger(x, y)
            assert triggered is not None
            images, wanted, mask = triggered
            predicted: Tensor = view.model(images.to(dtype)).argmax(dim=1)
            hits = hits + ((predicted == wanted) & mask).sum()
            total = total + mask.sum()
    finally:
        for module, mode in modes:
            module.training = mode
    return float(hits / total.clamp_min(1))


class DecayTimed(AttackWrapper):
    """Attackers attack only in rounds in which their backdoor has decayed.

    A malicious client measures the backdoor accuracy of the received global model on its
    triggered images. Above ``threshold`` it trains honestly (with the client-side defense only if
    the federation has ``defended_attackers``); at or below, it carries out ``attack``. So bursts
    come when the defense has done its work.
    Nothing that changes updates can be inside, and nothing that changes what a client sends
    around this: it would change that of the honest rounds as well.

    Args:
        attack: on the data, with a trigger.
        threshold: in [0, 1]; 1 attacks always.

    Raises:
        ConfigError: threshold out of range; ``attack`` has no trigger, or corrupts updates.

    References:
        Not an attack of a paper: LeadFL (Zhu, Roos, Chen, ICML 2023) studies bursts at fixed
        rounds, this one chooses them.
    """

    holds_back = True

    def __init__(self, attack: Attack, threshold: float = 0.5) -> None:
        super().__init__(attack)
        require_number("DecayTimed", "threshold", threshold, least=0, most=1)
        name = type(self.attack).__name__
        if not overrides(self.attack, "trigger"):
            raise ConfigError(f"DecayTimed: attack must have a trigger, got attack = {name}")
        if overrides(self.attack, "corrupt"):
            raise ConfigError(
                "DecayTimed: attack must act on data only, because honest rounds would be "
                f"corrupted as well, got attack = {name}"
            )
        self.threshold = threshold

    def local(self, view: AttackerView) -> Attack:
        if backdoor_accuracy(self.attack, view) > self.threshold:
            return Attack()
        return super().local(view)
