"""The curvature of a client's local loss, and what LeadFL's estimates of it are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from leadfl_pl.core.errors import ConfigError, require_number, where
from leadfl_pl.core.rng import generator
from leadfl_pl.core.values import LocalStep
from leadfl_pl.diagnostics.linearised import hessian_vector_product
from leadfl_pl.diagnostics.replay import Observer, replay, require_replayable
from leadfl_pl.federation.clients import DEVICE_ERRORS
from leadfl_pl.trainer.callback import FederatedCallback


def hutchinson_diagonal(
    grads: Sequence[Tensor], params: Sequence[Tensor], samples: int, rng: torch.Generator
) -> list[Tensor]:
    r"""The Hessian's diagonal, estimated without bias from exact products.

    :math:`\mathrm{diag}(H) \approx \frac1S \sum_s z_s \odot H z_s` with entries :math:`\pm 1` of
    equal chance. The variance of entry j is :math:`\sum_{k \ne j} H_{jk}^2 / S`: 0 for a Hessian
    that is diagonal, as here.

    Args:
        grads: g, the gradient of a loss by ``params``, with its graph (``create_graph=True``).
        params: W, the same shapes.
        samples: S.
        rng: on the parameters' device.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> g = torch.autograd.grad((w**3).sum(), [w], create_graph=True)
    >>> hutchinson_diagonal(g, [w], samples=1, rng=torch.Generator().manual_seed(0))  # 6 w
    [tensor([ 6., 12.])]

    References:
        Bekas, Kokiopoulou, Saad. An Estimator for the Diagonal of a Matrix. Applied Numerical
        Mathematics 57, 2007.
    """
    total = [torch.zeros_like(p) for p in params]
    for _ in range(samples):
        signs = [torch.empty_like(p).bernoulli_(0.5, generator=rng).mul_(2).sub_(1) for p in params]
        products = hessian_vector_product(grads, params, [z.detach() for z in signs])
        torch._foreach_addcmul_(total, signs, products, value=1 / samples)
    return [t.detach() for t in total]


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation () of two vectors (d,), in float64; NaN if one is constant.

    >>> pearson(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-1.0, -2.0, -4.0]))
    tensor(-1.0000, dtype=torch.float64)
    """
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    correlation: Tensor = (x @ y) / (x.norm() * y.norm())
    return correlation


def ranks(x: Tensor) -> Tensor:
    """The rank of each entry of a vector (d,), the mean one of equal entries.

    >>> ranks(torch.tensor([5.0, 0.0, 0.0]))
    tensor([3.0000, 1.5000, 1.5000], dtype=torch.float64)
    """
    _, place, counts = x.unique(return_inverse=True, return_counts=True)
    means: Tensor = counts.cumsum(0) - (counts - 1) / 2.0
    return means.double()[place]


class DiagonalProbe(Observer):
    r"""The diagonal of the Hessian at one local step i, and the estimates of it, (d,) each.

    Args:
        step: i, at least 1, followed by at least one more.
        samples: S of :func:`hutchinson_diagonal`; half of them give each of ``halves``.
        rng: on the parameters' device.

    Attributes:
        halves: two independent Hutchinson estimates by trainable parameter.
        equation_3: :math:`g_{i+1} - g_i`, as the report writes it, on the batches of these steps.
        equation_6: :math:`(W_i - \tilde W_{i+1} + W_i - W_{i-1}) / \eta`, as LeadFL takes it.
        lr: eta.
    """

    def __init__(self, step: int, samples: int, rng: torch.Generator) -> None:
        self.at, self.samples, self.rng, self.step = step, samples, rng, 0
        self.weights: list[Tensor] = []  # W of the step before

    def start(self, names: Sequence[str], params: list[Tensor]) -> None:
        self.names = names

    def gradient(self, params: list[nn.Parameter], grads: list[Tensor]) -> None:
        weights = [p.detach().clone() for p in params]
        if self.step == self.at:
            self.halves = [
                hutchinson_diagonal(grads, params, self.samples // 2, self.rng) for _ in range(2)
            ]
            self.grads = [g.detach().clone() for g in grads]
            self.change = list(torch._foreach_sub(weights, self.weights))  # W_i - W_{i-1}
        elif self.step == self.at + 1:
            self.equation_3 = torch._foreach_sub([g.detach() for g in grads], self.grads)
        self.weights = weights

    def after_step(self, step: LocalStep) -> None:
        if self.step == self.at:
            total = torch._foreach_sub(self.weights, step.params)  # W_i - W~_{i+1}
            torch._foreach_add_(total, self.change)
            self.equation_6, self.lr = torch._foreach_div(total, step.lr), step.lr
        self.step += 1


class Curvature(FederatedCallback):
    r"""Measures the diagonal of the local Hessian, which LeadFL wants at :math:`1/\eta`.

    At the last local step but one of the first honest client of a round's cohort, on that step's
    batch: it is there, if anywhere, that a round's regularisation has done its work, while the
    global model has the mean of several; and equation (3) needs one more step.

    Logs, in every ``every_n_rounds``-th round, with the unbiased estimate :math:`H_{jj}` of
    :func:`hutchinson_diagonal`:

    - ``curvature/near_zero``, and ``curvature/near_zero/NAME`` for each parameter tensor: the share
      of entries with :math:`|\eta H_{jj}| <` ``near_zero``;
    - ``curvature/eta_h``, the mean of :math:`\eta H_{jj}` (1 is what LeadFL wants), and
      ``curvature/near_one``, the share of entries with :math:`|1 - \eta H_{jj}| <` ``near_one``;
    - for ``equation_3`` and ``equation_6`` of the report: ``curvature/equation_3/pearson`` and
      ``.../rank``, the correlations (Spearman's too) with :math:`H_{jj}`, and ``.../eta_h``, the
      mean of what it takes :math:`\eta H_{jj}` for;
    - ``curvature/reliability``, the Pearson correlation of the two halves of the probes: far below
      1 the other correlations are limited by ``samples``, and so is ``near_zero``, since the noise
      of the probes only makes entries larger. The means over all entries need few probes.

    Args:
        every_n_rounds: 1 measures in every round.
        samples: how many random probes, an even number; each costs about as much as seven local
            steps (``FashionMNISTNet``, CPU).
        near_zero: threshold in units of :math:`1/\eta`: at 0.001 such an entry's part of an attack
            changes by less than 0.1 % in a local step.
        near_one: threshold in the same units: at 0.5 such an entry's part of an attack at least
            halves in a local step.

    Raises:
        ConfigError: a setting out of range; several processes; less than three local steps; a
            client or a callback with a part of its own in local steps.
    """

    def __init__(
        self,
        every_n_rounds: int = 5,
        samples: int = 256,
        near_zero: float = 1e-3,
        near_one: float = 0.5,
    ) -> None:
        require_number("Curvature", "every_n_rounds", every_n_rounds, least=1, whole=True)
        require_number("Curvature", "samples", samples, least=2, whole=True)
        require_number("Curvature", "near_zero", near_zero, above=0)
        require_number("Curvature", "near_one", near_one, above=0)
        if samples % 2:
            raise ConfigError(f"Curvature: samples must be even, got samples = {samples}")
        self.every_n_rounds, self.samples = every_n_rounds, samples
        self.near_zero, self.near_one = near_zero, near_one
        self.values: dict[str, float] = {}  # of the running round

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            require_replayable("Curvature", trainer, pl_module)
            self.values = {}

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        clients = trainer.fit_loop.clients
        fewest = min(clients.num_steps(c) for c in range(trainer.federation.num_clients))
        if fewest < 3:
            raise ConfigError(
                "Curvature needs clients that take at least 3 local steps in a round, "
                f"got one that takes {fewest}"
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
        t, clients = trainer.current_epoch, trainer.fit_loop.clients
        if t < trainer.fit_loop.rounds_done:
            return  # goes on from a checkpoint of the round's evaluation
        self.values = {}
        cohort = trainer.federation.cohort(t)
        honest = [c for c, m in zip(cohort.client_ids, cohort.malicious, strict=True) if not m]
        if t % self.every_n_rounds or not honest:
            return
        rng = generator(clients.seed, "curvature", t, honest[0], device=clients.vector.device)
        probe = DiagonalProbe(clients.num_steps(honest[0]) - 2, self.samples, rng)
        try:
            replay(clients, t, honest[0], probe)
        except (ConfigError, *DEVICE_ERRORS):
            raise
        except Exception as error:  # in the round, the client is left out
            rank_zero_warn(f"Curvature measures nothing in round {t}: {where(error)}")
            return
        self.values = self.describe(probe)

    def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        pl_module.log_dict({f"curvature/{name}": value for name, value in self.values.items()})

    def describe(self, probe: DiagonalProbe) -> dict[str, float]:
        """What is logged, by name."""
        first, second = (torch.cat([h.flatten() for h in half]) for half in probe.halves)
        eta_h = probe.lr * (first + second) / 2
        parts = eta_h.split([h.numel() for h in probe.halves[0]])
        numbers = {
            f"near_zero/{name}": (part.abs() < self.near_zero).double().mean()
            for name, part in zip(probe.names, parts, strict=True)
        } | {
            "near_zero": (eta_h.abs() < self.near_zero).double().mean(),
            "near_one": ((1 - eta_h).abs() < self.near_one).double().mean(),
            "eta_h": eta_h.mean(),
            "reliability": pearson(first, second),
        }
        for name in ("equation_3", "equation_6"):
            estimate = torch.cat([h.flatten() for h in getattr(probe, name)])
            numbers[f"{name}/eta_h"] = probe.lr * estimate.mean()
            numbers[f"{name}/pearson"] = pearson(estimate, eta_h)
            numbers[f"{name}/rank"] = pearson(ranks(estimate), ranks(eta_h))
        return {name: float(number) for name, number in numbers.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = dict(state_dict["values"])
