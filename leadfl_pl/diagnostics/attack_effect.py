"""The attack effect: how far the attack has moved the global model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import hypot, isnan, nan
from sys import float_info
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.rng import isolated_rng
from leadfl_pl.core.values import Cohort
from leadfl_pl.core.vector import Snapshot
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.gather import train_cohort
from leadfl_pl.federation.server import FailedRoundsError, Server
from leadfl_pl.metrics import half_life
from leadfl_pl.trainer.trainer import FederatedTrainer


def layer_norms(delta: Tensor, sizes: Sequence[tuple[str, int]]) -> dict[str, float]:
    """The L2 norm of the whole, under "", and that of each layer, under its name.

    >>> layer_norms(torch.tensor([2.0, 1.0, 2.0]), [("first", 1), ("last", 1), ("last", 1)])
    {'': 3.0, 'first': 2.0, 'last': 2.23606797749979}

    Args:
        delta: (d,).
        sizes: the layer, and the number of entries, of each parameter in the order of ``delta``.
    """
    parts = delta.split([size for _, size in sizes])
    values = torch.stack([torch.linalg.vector_norm(part) for part in parts]).tolist()
    norms = {"": hypot(*values)}
    for (layer, _), value in zip(sizes, values, strict=True):
        norms[layer] = hypot(norms.get(layer, 0.0), value)
    return norms


def fitted_half_life(norms: Sequence[float]) -> float:
    """Rounds in which the norm halves: :func:`~leadfl_pl.metrics.half_life`, for norms.

    >>> fitted_half_life([8.0, 4.0, 2.0, 1.0])
    1.0

    Args:
        norms: after the last attacked round, and after every round since; 0 is left out.
    """
    since = [True] + [False] * (len(norms) - 1)
    return half_life([norm or nan for norm in norms], since, floor=float_info.min)


class AttackEffect(Callback):
    r"""Measures the attack effect exactly: it runs the federation without its attack beside it.

    With :math:`W_t^M` the global model of the run and :math:`W_t` that of its clean twin, the run
    with ``trainer.federation.attack: null``,

    .. math:: \delta_t = W_t^M - W_t, \qquad \rho_t = \|\delta_{t+1}\| / \|\delta_t\|

    on the trainable parameters. The twin has the run's seed, cohorts, batch orders and noise, and
    its malicious clients train as they do without an attack; the rule's state, the server's last
    step, momenta and BatchNorm's buffers are the twin's. Its model is to the bit that of a run by
    itself with as many devices and the same execution. After every round t this is logged:

    - ``attack_effect/norm``: :math:`\|\delta_{t+1}\|`; exactly 0 before the first attacked round.
    - ``attack_effect/relative``: :math:`\|\delta_{t+1}\| / \|W_{t+1}^M\|`.
    - ``attack_effect/contraction``: :math:`\rho_t`, in a round without malicious clients.
    - ``attack_effect/half_life``: rounds in which the norm halves, by the least-squares line through
      :math:`\log_2 \|\delta\|` from the last attacked round on, see
      :func:`~leadfl_pl.metrics.half_life`; missing where the norm does not decay.
    - ``attack_effect/norm/LAYER`` and ``attack_effect/contraction/LAYER``, for each module with
      parameters of its own. The squares of the layers' norms add up to that of the whole.

    The twin costs a second training of every cohort: n I forward and backward passes a round, one
    aggregation, and no evaluation. It sends no client through the hooks of a batch; hooks within a
    local step (``on_after_backward``) hear of its steps as well, since they may change them.

    Attributes:
        delta: (d,) :math:`\delta_{t+1}` in the order of
            :class:`~leadfl_pl.core.vector.ModelVector`, None before the first round has ended.
        clean: the twin's global model, None before training starts.

    Raises:
        ConfigError: no FederatedTrainer; no attack to switch off; an evaluation that moves buffers;
            a run that goes on from a checkpoint without the twin.

    References:
        Guthmann and Tan, see :class:`~leadfl_pl.LeadFL`, section III.

    Differences:
        1. The report has :math:`\delta_t = W_t - W_t^M`, with the opposite sign.
    """

    def __init__(self) -> None:
        self.delta: Tensor | None = None
        self.clean: Snapshot | None = None
        self._norms: list[float] = []  # after the last attacked round and every round since
        self._clients: Clients | None = None
        self._server: Server | None = None
        self._rule: Aggregator | None = None
        self._resumed: dict[str, Any] | None = None  # until the run's clients are there

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(trainer, FederatedTrainer):
            raise ConfigError(
                f"AttackEffect needs a FederatedTrainer, got {type(trainer).__name__}"
            )
        if trainer.federation.attack is None:
            raise ConfigError(
                "AttackEffect compares the run with the one without its attack: "
                "trainer.federation.attack must be set, got attack = null"
            )
        if trainer.fit_loop.rounds_done == 0:  # else the same Trainer goes on
            AttackEffect.__init__(self)
            self._rule = copy.deepcopy(trainer.federation.aggregator)  # before its state is loaded

    def on_train_start(self, trainer: Any, pl_module: FederatedClient) -> None:
        if self._server is not None:
            return
        loop, vector = trainer.fit_loop, trainer.fit_loop.clients.vector
        # evaluating the run by itself would move its buffers, and with them its later evaluations
        # and, in distance_space "state", the distances of its updates
        if pl_module.evaluation_mode == "train" and any(True for _ in pl_module.model.buffers()):
            raise ConfigError(
                "AttackEffect cannot follow buffers that evaluation moves: model.evaluation_mode "
                "must be eval for a network with buffers, got evaluation_mode = train"
            )
        if loop.rounds_done and self._resumed is None:
            raise ConfigError(
                "AttackEffect must run from round 0 on: ckpt_path must be a checkpoint of a run "
                f"with it, got ckpt_path = {trainer.ckpt_path}"
            )
        assert self._rule is not None  # since setup
        self._clients = loop.clients.without_attack(self._rule.to(vector.device))
        self._server = Server(self._clients.federation)
        self.clean = vector.snapshot()
        if self._resumed is not None:
            self._restore(self._resumed, vector.device)
        self._resumed = None

    def on_train_epoch_end(self, trainer: Any, pl_module: FederatedClient) -> None:
        assert self._clients is not None and self.clean is not None  # since on_train_start
        cohort = self._clients.federation.cohort(trainer.current_epoch)
        vector = self._clients.vector
        attacked = vector.snapshot()
        try:
            vector.restore(self.clean)
            self._run_round(cohort)
            self.clean = vector.snapshot()
        finally:
            vector.restore(attacked)
        wide = torch.promote_types(vector.dtype, torch.float32)
        model, clean = (
            torch.cat([p.reshape(-1) for p in vector.trainable(theta.to(wide))])
            for theta in (attacked.theta, self.clean.theta)
        )
        before, self.delta = self.delta, model - clean
        pl_module.log_dict(
            self._measure(before, self.delta, model, any(cohort.malicious), pl_module)
        )

    def _run_round(self, cohort: Cohort) -> None:
        """The twin's round: select, train, aggregate, on the module that has its model."""
        clients, server = self._clients, self._server
        assert clients is not None and server is not None
        try:
            with isolated_rng():
                updates = train_cohort(clients, cohort, server.last_update)
                root_update = clients.train_root(cohort.round)
                server.step(updates, cohort, clients.vector, root_update)
        except (FailedRoundsError, FloatingPointError) as error:
            raise type(error)(f"AttackEffect's run without the attack: {error}") from error

    def _measure(
        self,
        before: Tensor | None,
        delta: Tensor,
        model: Tensor,
        attacked: bool,
        client: FederatedClient,
    ) -> dict[str, float]:
        named = client.model.named_parameters(remove_duplicate=False)
        sizes = [
            (name.rpartition(".")[0] or type(client.model).__name__, p.numel())
            for name, p in named
            if p.requires_grad
        ]
        norms = layer_norms(delta, sizes)
        whole = norms[""]
        self._norms = [whole] if attacked else [*self._norms, whole]
        metrics = {_name("norm", layer): norm for layer, norm in norms.items()}
        metrics["attack_effect/relative"] = float(
            torch.linalg.vector_norm(delta) / torch.linalg.vector_norm(model)
        )
        if not attacked and before is not None:
            metrics |= {
                _name("contraction", layer): norms[layer] / norm
                for layer, norm in layer_norms(before, sizes).items()
                if norm
            }
        if not isnan(rounds := fitted_half_life(self._norms)):
            metrics["attack_effect/half_life"] = rounds
        return metrics

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        if self._clients is None or self._server is None or self.clean is None:
            return {}
        return {
            "delta": self.delta,
            "clean": tuple(self.clean),
            "norms": self._norms,
            "momenta": self._clients.momenta,
            "server": self._server.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    def _restore(self, state: dict[str, Any], device: torch.device) -> None:
        assert self._clients is not None and self._server is not None
        theta, buffers, kept = state["clean"]
        self.clean = Snapshot(theta.to(device), buffers.to(device), [t.to(device) for t in kept])
        self.delta = None if state["delta"] is None else state["delta"].to(device)
        self._norms = list(state["norms"])
        self._clients.momenta = dict(state["momenta"])
        self._server.load_state_dict(state["server"], device)


def _name(kind: str, layer: str) -> str:
    return f"attack_effect/{kind}/{layer}" if layer else f"attack_effect/{kind}"
