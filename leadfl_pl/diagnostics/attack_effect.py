"""The attack effect: how far the attack has moved the global model."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, isnan, nan
from sys import float_info
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.vector import Snapshot
from leadfl_pl.diagnostics.clean_twin import CleanTwin
from leadfl_pl.metrics import half_life
from leadfl_pl.trainer.callback import FederatedCallback


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

    >>> round(fitted_half_life([8.0, 4.0, 2.0, 1.0]), 6)
    1.0

    Args:
        norms: after the last attacked round, and after every round since; 0 is left out.
    """
    since = [True] + [False] * (len(norms) - 1)
    return half_life([norm or nan for norm in norms], since, floor=float_info.min)


class AttackEffect(FederatedCallback):
    r"""Measures the attack effect exactly: it runs the federation without its attack beside it.

    With :math:`W_t` the global model of the run and :math:`W_t^M` that of its clean twin, the run
    with ``trainer.federation.attack: null``,

    .. math:: \delta_t = W_t - W_t^M, \qquad \rho_t = \|\delta_{t+1}\| / \|\delta_t\|

    on the trainable parameters. The twin has the run's seed, cohorts, batch orders and noise, and
    its malicious clients train as they do without an attack; the rule's state, the server's last
    step, momenta and BatchNorm's buffers are the twin's. Its model is to the bit that of a run by
    itself with as many devices and the same execution. After every round t this is logged:

    - ``attack_effect/norm``: :math:`\|\delta_{t+1}\|`; exactly 0 before the first attacked round
      (on a GPU with ``deterministic: true``).
    - ``attack_effect/relative``: :math:`\|\delta_{t+1}\| / \|W_{t+1}\|`.
    - ``attack_effect/contraction``: :math:`\rho_t`, in a round without malicious clients.
    - ``attack_effect/half_life``: rounds in which the norm halves, by the least-squares line
      through :math:`\log_2 \|\delta\|` after the last attacked round and after every round since;
      missing where the norm does not decay.
    - ``attack_effect/norm/LAYER`` and ``attack_effect/contraction/LAYER``, for each module with
      parameters of its own. The squares of the layers' norms add up to that of the whole.

    The twin costs a second training of every cohort: n I forward and backward passes a round, one
    aggregation, and no evaluation. It sends no client through the hooks of a batch; hooks within a
    local step (``on_after_backward``) hear of its steps as well, since they may change them.

    Attributes:
        delta: (d,) :math:`\delta_{t+1}` in the order of
            :class:`~leadfl_pl.core.vector.ModelVector`, None before the first round has ended.

    Raises:
        ConfigError: no FederatedTrainer; no attack to switch off; an evaluation that moves buffers;
            a run that goes on from a checkpoint without the twin.

    References:
        Guthmann and Tan, see :class:`~leadfl_pl.LeadFL`, section II.
    """

    def __init__(self) -> None:
        self.delta: Tensor | None = None
        self._twin: CleanTwin | None = None
        self._norms: list[float] = []  # after the last attacked round, and after each since
        self._resumed: dict[str, Any] = {}  # what a checkpoint had, until the clients are there

    @property
    def clean(self) -> Snapshot | None:
        """The twin's global model, None before training starts."""
        return self._twin.model if self._twin else None

    @property
    def twin_lost_updates(self) -> bool:
        """Whether the twin was without the update of a client in the last round."""
        assert self._twin is not None  # since on_train_start
        result = self._twin.result
        return len(result.received) < len(result.client_ids)

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if trainer.federation.attack is None:
            raise ConfigError(
                "AttackEffect compares a run with the one without its attack: "
                "trainer.federation.attack must be set, got attack = null"
            )
        if trainer.fit_loop.rounds_done == 0:  # else the same Trainer fits on
            self.delta, self._twin, self._norms, self._resumed = None, None, [], {}
        else:  # after another fit, whose tensors the network may have left
            self._resumed, self._twin = {} if trainer.ckpt_path else self.state_dict(), None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # A run by itself is evaluated, which would move these buffers: the twin's would be others,
        # and with distance_space "state" its distances as well.
        if pl_module.evaluation_mode == "train" and any(True for _ in pl_module.model.buffers()):
            raise ConfigError(
                "AttackEffect needs a model whose buffers evaluation leaves alone: "
                "model.evaluation_mode must be eval, got evaluation_mode = train"
            )
        if trainer.fit_loop.rounds_done and not self._resumed:
            raise ConfigError(
                "AttackEffect must be there from round 0 on: ckpt_path must be a checkpoint of a "
                f"run with it, got ckpt_path = {trainer.ckpt_path}"
            )
        self._twin = CleanTwin(trainer.fit_loop.clients)
        if state := self._resumed:
            device = self._twin.vector.device
            self._twin.load_state_dict(state["twin"], device)
            self.delta = None if state["delta"] is None else state["delta"].to(device)
            self._norms = list(state["norms"])
            self._resumed = {}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self._twin is not None  # since on_train_start
        self._twin.run_round(trainer.current_epoch)
        vector, model = self._twin.vector, pl_module.model
        wide = torch.promote_types(vector.dtype, torch.float32)
        attacked, clean = (
            torch.cat([p.reshape(-1) for p in vector.trainable(theta.to(wide))])
            for theta in (vector.read(), self._twin.model.theta)
        )
        before, self.delta = self.delta, attacked - clean
        sizes = [
            (name.rpartition(".")[0] or type(model).__name__, p.numel())
            for name, p in model.named_parameters()
            if p.requires_grad
        ]
        norms = layer_norms(self.delta, sizes)
        size = float(torch.linalg.vector_norm(attacked))
        log = {_name("norm", layer): norm for layer, norm in norms.items()}
        log["attack_effect/relative"] = norms[""] / size if size else nan
        if any(trainer.fit_loop.result.malicious):
            self._norms = []
        elif before is not None:
            log |= {
                _name("contraction", layer): norms[layer] / norm
                for layer, norm in layer_norms(before, sizes).items()
                if norm
            }
        self._norms = [*self._norms, norms[""]]
        if not isnan(rounds := fitted_half_life(self._norms)):
            log["attack_effect/half_life"] = rounds
        pl_module.log_dict(log)

    def state_dict(self) -> dict[str, Any]:
        if self._twin is None:  # no round has been run since
            return self._resumed
        return {"delta": self.delta, "norms": self._norms, "twin": self._twin.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict


def effect_before(callback: FederatedCallback, trainer: Any) -> AttackEffect:
    """The :class:`AttackEffect` that measures before ``callback`` does.

    Raises:
        ConfigError: there is none.
    """
    for other in trainer.callbacks[: trainer.callbacks.index(callback)]:
        if isinstance(other, AttackEffect):
            return other
    raise ConfigError(
        f"{type(callback).__name__} needs an AttackEffect before it among trainer.callbacks, got "
        f"{', '.join(type(other).__name__ for other in trainer.callbacks)}"
    )


def starts_anew(trainer: Any) -> bool:
    """Whether a fit starts, or goes on from a checkpoint and not from the same Trainer's last."""
    return trainer.fit_loop.rounds_done == 0 or trainer.ckpt_path is not None


def _name(kind: str, layer: str) -> str:
    return f"attack_effect/{kind}/{layer}" if layer else f"attack_effect/{kind}"
