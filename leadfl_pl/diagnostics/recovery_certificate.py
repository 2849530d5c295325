"""A recovery certificate: what an attack can still do some rounds after it, for convex models."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from leadfl_pl.core.vector import ModelVector
from leadfl_pl.diagnostics.attack_effect import AttackEffect, effect_before, starts_anew
from leadfl_pl.diagnostics.theorem import check_theorem
from leadfl_pl.trainer.callback import FederatedCallback


def distance_to_error(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Least L2 distance (B,) to logits in which another class is as large as the label.

    The label and its strongest rival meet half-way: :math:`(z_y - \max_{j\ne y} z_j)_+/\sqrt2`.

    >>> distance_to_error(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0]))
    tensor([1.4142])

    Args:
        logits: z (B, classes).
        labels: y (B,).
    """
    z = logits.gather(1, labels[:, None]).squeeze(1)
    rival = logits.scatter(1, labels[:, None], -inf).amax(dim=1)
    return (z - rival).clamp_min(0) / sqrt(2)


def distance_to_class(logits: Tensor, target: Tensor) -> Tensor:
    r"""Least L2 distance (B,) to logits in which no class is larger than the target.

    The target c and its largest rivals meet at their mean, those of them that are above it:

    .. math::
        \Bigl((m - z_c)^2 + \sum\nolimits_j (z_j - m)_+^2\Bigr)^{1/2}, \qquad
        m = \max_k \frac{z_c + z_{(1)} + \dots + z_{(k)}}{k + 1}

    >>> distance_to_class(torch.tensor([[0.0, 3.0, 3.0]]), torch.tensor([0]))  # all three at 2
    tensor([2.4495])

    Args:
        logits: z (B, classes).
        target: c (B,).
    """
    z = logits.gather(1, target[:, None])
    rivals = logits.scatter(1, target[:, None], -inf).sort(dim=1, descending=True).values[:, :-1]
    sums = torch.cat([z, rivals], dim=1).cumsum(dim=1)
    level = (sums / torch.arange(1, sums.shape[1] + 1).to(sums)).amax(dim=1, keepdim=True)
    moves = torch.cat([level - z, (rivals - level).clamp_min(0)], dim=1)
    distance: Tensor = torch.linalg.vector_norm(moves, dim=1)
    return distance


class RecoveryCertificate(FederatedCallback):
    r"""Certified clean and backdoor accuracy after a burst, for convex models.

    Let the attack effect :math:`\delta_t`, what :class:`AttackEffect` measures between the run and
    its clean twin, have the norm :math:`\lVert\delta_{t_0}\rVert` after the last round with
    attackers. After k rounds without, the theorem of :class:`~leadfl_pl.Contraction`
    (docs/contraction.md) bounds it by

    .. math::
        B_t = 2^{-k/T}\,\lVert\delta_{t_0}\rVert,

    in rounds with attackers :math:`B_t` is the measured norm, and 0 before any. A change of the
    parameters (W, b) of a linear model by at most B in L2 norm moves the logits of an image x by
    at most :math:`B\,\lVert(x, 1)\rVert` (:math:`B\,\lVert x\rVert` without a bias) in L2 norm, in
    any direction, hence the difference of two of them by :math:`\sqrt2` times that. After every
    round are logged

    - ``certificate/bound``: :math:`B_t`;
    - ``certificate/clean_accuracy``: share of the validation images that the **twin** classifies
      correctly, with a margin that no such move overcomes;
    - ``certificate/backdoor_accuracy``: share of the triggered ones, true class not the target,
      that some such move sends to the target; for an attack with a trigger.

    The margins are taken at the twin's model, since the run's lies within :math:`B_t` of it: so
    the first is a lower bound of the run's clean accuracy and the second an upper bound of its
    backdoor accuracy. At the run's model the first would only be a subset of what it classifies
    correctly anyway. As in Cohen et al., an image counts if the answer is right and certain.

    What is certified is recovery, from any attack and on any data; the attack's size is measured at
    the end of the burst, with a twin that only a simulation has. Rounding of float32 is part of
    :math:`B_t`, see :func:`rounding`.

    Raises:
        ConfigError: before the first round, the theorem does not hold in this run.

    References:
        Cohen, Rosenfeld, Kolter. Certified Adversarial Robustness via Randomized Smoothing. ICML
        2019 (certified accuracy).
        Xie, Chen, Chen, Li. CRFL: Certifiably Robust Federated Learning against Backdoor Attacks.
        ICML 2021. It clips and perturbs the global model in every round, and certifies by
        randomised smoothing of the parameters, with high probability, against backdoors of a
        limited magnitude and share of the data. Here training is not perturbed, the certificate
        is deterministic, an attack may be of any kind and size, and it is the rounds since that
        make it strong.
    """

    effect: AttackEffect
    features: nn.Sequential  # all of the network before its linear layer
    num_features: int  # D

    def __init__(self) -> None:
        self.bound: float | None = None  # B_t
        self.clean, self.backdoor = MeanMetric(), MeanMetric()

    def state_dict(self) -> dict[str, Any]:
        return {"bound": self.bound}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bound = state_dict["bound"]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and starts_anew(trainer):
            self.bound = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.features, last = check_theorem(trainer, pl_module)
        self.num_features = last.in_features
        self.effect = effect_before(self, trainer)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        attack, clean, delta = trainer.federation.attack, self.effect.clean, self.effect.delta
        assert clean is not None  # since on_train_start
        assert delta is not None  # as it measures first
        params = ModelVector(pl_module.model).trainable(clean.theta)
        bound = self.bound = self.next_bound(trainer, clean.theta, delta)

        def logits_and_radius(x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.features(x)  # (B, D)
            ones = torch.ones_like(features[:, : len(params) - 1])
            norms = torch.cat([features, ones], dim=1).double().norm(dim=1)
            return F.linear(features, *params).double(), bound * norms

        for metric in (self.clean, self.backdoor):
            metric.reset()
            metric.to(pl_module.device)
        for batch in trainer.datamodule.val_dataloader():
            x, y = trainer.precision_plugin.convert_input(batch)
            logits, radius = logits_and_radius(x)
            self.clean.update((distance_to_error(logits, y) > radius).float())
            if (triggered := attack.trigger(x, y)) is not None:
                images, target, counts = triggered
                logits, radius = logits_and_radius(images)
                self.backdoor.update((distance_to_class(logits, target) <= radius)[counts].float())
        pl_module.log("certificate/bound", bound)
        pl_module.log("certificate/clean_accuracy", self.clean.compute())
        if self.backdoor.update_called:
            pl_module.log("certificate/backdoor_accuracy", self.backdoor.compute())

    def next_bound(self, trainer: Any, clean: Tensor, delta: Tensor) -> float:
        """B_{t+1}, given the twin's model (d,) and the attack effect (d,) after round t."""
        result, bound = trainer.fit_loop.result, self.bound
        # a client that sent nothing may have done so in one of the two runs only
        lost = self.effect.twin_lost_updates or len(result.received) < len(result.client_ids)
        if bound is None or lost or any(result.malicious):
            bound = float(delta.double().norm())
        else:
            bound *= 2 ** (-1 / trainer.lightning_module.defense.half_life)
        if not bound and not bool(delta.any()):  # the same to the bit
            return 0.0
        steps = max(trainer.fit_loop.clients.num_steps(c) for c in result.client_ids)
        norm = float(clean.norm() + (clean + delta).norm())
        return bound + rounding(steps, self.num_features, norm, torch.finfo(clean.dtype).eps)


def rounding(steps: int, features: int, norm: float, eps: float) -> float:
    r"""How far rounding may drive the two models apart in a round, in L2 norm.

    A local step rounds its result to :math:`u \lVert W\rVert` twice, with :math:`u` half of
    ``eps``. It is computed from logits, sums of D products each, with an error of about
    :math:`\sqrt D\, u\, \lVert W\rVert \lVert x\rVert`, as rounding errors of a sum are about
    independent (Higham, Mary. A New Approach to Probabilistic Rounding Error Analysis. SISC 2019);
    the gradient step makes at most :math:`\eta\beta \le 2` times :math:`\sqrt D\, u\, \lVert
    W\rVert` of it, and as much again is left for the sums over the batch. A step does not expand
    what an earlier one left, so errors add up at worst. The mean over the clients and evaluation
    count as a step each:

    .. math::
        (I + 2)\,(2 + 4\sqrt D)\, u\, (\lVert W_t\rVert + \lVert W_t^M\rVert)

    It is relative to the models and not to :math:`\delta`, which goes to zero while rounding does
    not.

    >>> rounding(steps=40, features=64, norm=10.0, eps=torch.finfo(torch.float32).eps)
    0.0008511543273925781
    """
    return (steps + 2) * (2 + 4 * sqrt(features)) * eps / 2 * norm
