"""The attack effect as equations (1) and (2) estimate it, beside the measured one."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.vector import Snapshot
from leadfl_pl.diagnostics.attack_effect import AttackEffect, effect_before, starts_anew
from leadfl_pl.diagnostics.linearised import (
    Product,
    Propagation,
    diagonal_product,
    exact_product,
    require_propagation,
    zero_product,
)
from leadfl_pl.diagnostics.replay import replay, require_replayable
from leadfl_pl.trainer.callback import FederatedCallback

PRODUCTS: dict[str, Product] = {
    "exact": exact_product,
    "diagonal": diagonal_product,
    "flat": zero_product,
}
SINCE = "_since_attack"  # of an estimate that starts at the end of the last attacked round


class AttackEffectEstimate(FederatedCallback):
    r"""Estimates the attack effect by equations (1) and (2) and compares it with the measured one.

    In a round without attackers the estimate is

    .. math::
        \hat\delta_{t+1} = \Big[(1 + w_\theta)\, I + \sum_c w_c
        \Big(\prod_{i=0}^{I-1} D_i (I - \eta H_{t,i}^c) - I\Big)\Big]\, \delta_t

    over the clients c that the rule used, each along its real local steps
    (:class:`~leadfl_pl.diagnostics.linearised.Propagation`, which says what the defense's
    :math:`D_i` is). The weights w are those with which the rule's step was made of their updates
    and of the global model, :math:`\sum_c w_c u_c + w_\theta W_t`, by least squares: 1 / n and
    0 for a mean, as in equation (2); N_c / N for FedAvg, times ``server_lr``; below 0 for
    :math:`w_\theta` where the server decays the model.

    Logs, for ``exact`` Hessian-vector products, for the ``diagonal`` of equation (3), and for a
    ``flat`` loss (H = 0), which is what any estimate has to beat:

    - ``attack_effect/exact/error``, :math:`\lVert\hat\delta_{t+1} - \delta_{t+1}\rVert /
      \lVert\delta_{t+1}\rVert`, and ``attack_effect/exact/cosine``, one round ahead of the
      measured :math:`\delta_t`;
    - ``attack_effect/exact_since_attack/error`` and ``.../cosine``, where the estimate of the
      round before takes the place of :math:`\delta_t`, from the end of the last attacked round on;
    - ``attack_effect/rule_residual``, the part of the rule's step (relative norm) that is no such
      sum: 0 but for rounding for means, larger for coordinate-wise rules, noise and error feedback.

    That the rule may choose other clients in the twin is not part of the estimate, nor is that the
    weights of a rule which is no mean depend on the updates. Nothing of the run changes by it. In a
    round without attackers each client that the rule used trains once more, with local steps that
    cost about ten plain ones (``FashionMNISTNet``, CPU).

    Raises:
        ConfigError: no :class:`~leadfl_pl.AttackEffect` before this one among the
            Trainer's callbacks; several processes; clients that keep their momentum between rounds;
            distances on more than parameters; a client or a callback with a part of its own in
            local steps; a defense that asks for gradients elsewhere, as ``SAM`` does.
    """

    effect: AttackEffect

    def __init__(self) -> None:
        self.start: Snapshot | None = None  # of the global model, before the round
        self.before: Tensor | None = None  # (d,) the measured effect, before the round
        self.carried: dict[str, Tensor] = {}  # (d,) the estimates since the last attacked round

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        name = type(self).__name__
        self.effect = effect_before(self, trainer)
        if starts_anew(trainer):
            self.start, self.before, self.carried = None, None, {}
        for key, needed in (("carry_momentum", False), ("distance_space", "params")):
            if (value := getattr(trainer.federation, key)) != needed:
                raise ConfigError(
                    f"{name} needs trainer.federation.{key} = {needed}, got {key} = {value}"
                )
        require_replayable(name, trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        client = trainer.fit_loop.clients.client
        named = [(n, p) for n, p in client.model.named_parameters() if p.requires_grad]
        require_propagation(client.defense, named)

    def on_train_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
        if trainer.current_epoch < trainer.fit_loop.rounds_done:
            return  # goes on from a checkpoint of the round's evaluation
        delta = self.effect.delta
        self.before = None if delta is None else delta.clone()
        self.start = trainer.fit_loop.clients.vector.snapshot()

    def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        t, delta = trainer.current_epoch, self.effect.delta
        if any(trainer.federation.cohort(t).malicious):
            self.carried = {}
        elif self.before is not None and delta is not None and self.before.any() and delta.any():
            since = self.carried or (t and any(trainer.federation.cohort(t - 1).malicious))
            names = [*PRODUCTS, *(name + SINCE for name in PRODUCTS if since)]
            vectors = {n: self.carried.get(n, self.before).to(delta) for n in names}
            estimates, residual = self.propagate(trainer, t, vectors)
            pl_module.log("attack_effect/rule_residual", residual)
            for name, estimate in estimates.items():
                error = (estimate - delta).norm() / delta.norm()
                cosine = torch.cosine_similarity(estimate, delta.to(estimate), dim=0)
                pl_module.log(f"attack_effect/{name}/error", error)
                pl_module.log(f"attack_effect/{name}/cosine", cosine)
            self.carried = {n: e for n, e in estimates.items() if n.endswith(SINCE)}

    def propagate(
        self, trainer: Any, t: int, vectors: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The estimates (d,) after round t from those before it, and the rule's residual ()."""
        clients, result = trainer.fit_loop.clients, trainer.fit_loop.result
        start, vector = self.start, clients.vector
        assert start is not None  # since on_train_epoch_start
        # the other model is the twin's, at W - delta
        parts = {n: vector.trainable(-v) for n, v in vectors.items()}
        products = {n: PRODUCTS[n.removesuffix(SINCE)] for n in vectors}
        after, updates, changes = vector.snapshot(), [], []
        vector.restore(start)
        try:
            for client_id in result.selected:
                seen = Propagation(clients.client.defense, clients.client.momentum, parts, products)
                updates.append(replay(clients, t, client_id, seen).delta.double())
                changes.append(seen.changes)
        finally:
            vector.restore(after)
        step = result.delta.double()
        made_of = torch.stack([*updates, start.theta.to(step)], dim=1)  # (d, m + 1)
        # on a GPU it needs independent columns, which a client that sends nothing spoils
        weights = torch.linalg.lstsq(made_of.cpu(), step.cpu().unsqueeze(1)).solution.squeeze(1)
        weights = weights.to(step)
        residual = (made_of @ weights - step).norm()
        if step.any():  # else the rule kept the model
            residual /= step.norm()
        *of_clients, of_model = weights.tolist()
        estimates = {}
        for name, before in vectors.items():
            estimate = (1 + of_model) * before.double()
            for weight, change in zip(of_clients, changes, strict=True):
                estimate -= weight * change[name]
            estimates[name] = estimate
        return estimates, residual

    def state_dict(self) -> dict[str, Any]:
        start = None if self.start is None else tuple(self.start)
        return {"start": start, "before": self.before, "carried": self.carried}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        start = state_dict["start"]
        self.start = None if start is None else Snapshot(*start)
        self.before, self.carried = state_dict["before"], dict(state_dict["carried"])
