"""LeadFL: the regulariser on I - eta * H~ that makes the effect of a past attack decay."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from leadfl_pl.core.errors import ConfigError, require_choice, require_number
from leadfl_pl.core.values import LocalStep, takes_stacks
from leadfl_pl.defenses.base import (
    ClientDefense,
    ParameterChoice,
    chosen,
    clones,
    per_client,
    pick,
)

Norm = Literal["l2", "squared"]
Formulation = Literal["corrected", "released"]


def frobenius_norms(tensors: list[Tensor], stacked: bool) -> list[Tensor]:
    """The norm () of each tensor; of stacked ones (m, ...) the norms (m,) of their rows."""
    if stacked:
        return [torch.linalg.vector_norm(t.reshape(len(t), -1), dim=1) for t in tensors]
    return list(torch._foreach_norm(tensors))


def divide_(tensors: list[Tensor], norms: list[Tensor]) -> None:
    """Divides in place by what :func:`frobenius_norms` gave; 0 becomes the least positive number.

    >>> v = [torch.tensor([3.0, 4.0])]
    >>> divide_(v, frobenius_norms(v, stacked=False))
    >>> v
    [tensor([0.6000, 0.8000])]
    """
    safe = [n.clamp_min(torch.finfo(n.dtype).tiny) for n in norms]
    pairs = zip(safe, tensors, strict=True)
    torch._foreach_div_(tensors, [per_client(n, t) if n.ndim else n for n, t in pairs])


def leadfl_gradient(
    stepped: list[Tensor],
    current: list[Tensor],
    last_change: list[Tensor],
    clip: float,
    norm: Norm = "l2",
    stacked: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """The clipped gradient R of the regulariser, elementwise in [-clip, clip].

    ``V = 1 - (W_i - W~_{i+1} + dW_i)`` elementwise; R = clip(V / ||V||_F) for each tensor with
    ``norm="l2"``, R = clip(V) with ``norm="squared"``.

    Args:
        stepped: W~_{i+1}, the parameters after the optimizer's step.
        current: W_i, the parameters before it, same shapes.
        last_change: dW_i = W_i - W_{i-1}, same shapes.
        clip: the clipping threshold q.
        norm: of ||V||_F or of 0.5 * ||V||_F^2.
        stacked: every tensor is (m, ...), one row for each of m clients; so is R, and the norms
            are (m,).

    Returns:
        R (the shapes of ``stepped``) and the Frobenius norms of V, one scalar tensor for each.

    >>> one = torch.ones(4)
    >>> R, (norm,) = leadfl_gradient([0.9 * one], [one], [0.3 * one], clip=1.0)
    >>> norm, R[0]  # V = 1 - (0.1 + 0.3) = 0.6, ||V|| = 1.2
    (tensor(1.2000), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
    """
    v = list(torch._foreach_sub(stepped, current))
    torch._foreach_sub_(v, last_change)
    torch._foreach_add_(v, 1.0)
    norms = frobenius_norms(v, stacked)
    if norm == "l2":
        divide_(v, norms)
    torch._foreach_clamp_min_(v, -clip)
    torch._foreach_clamp_max_(v, clip)
    return v, norms


def released_gradient(
    stepped: list[Tensor],
    old: list[Tensor],
    memory: list[Tensor],
    lr: float,
    stacked: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradient S / ||S||_F of the released regulariser, and the norms.

    S = W~ - W_old - G - eta, where eta is rounded to float32 as the released code rounds it. For
    ``stacked`` see :func:`leadfl_gradient`.
    """
    s = list(torch._foreach_sub(stepped, old))
    torch._foreach_sub_(s, memory)
    torch._foreach_sub_(s, struct.unpack("f", struct.pack("f", lr))[0])
    norms = frobenius_norms(s, stacked)
    divide_(s, norms)
    return s, norms


class LeadFLState(NamedTuple):
    """What LeadFL remembers between two local steps."""

    where: list[int]  # positions of the parameters it acts on
    weights: list[Tensor]  # W_i
    memory: list[Tensor] | None  # dW_i; the gradient buffer G in the released form; None: no step
    norms: list[Tensor]  # of the last V or S


class LeadFL(ClientDefense):
    r"""LeadFL: a second, regularising step after every local step.

    Algorithm 1 of Zhu, Roos and Chen as Guthmann and Tan correct it in "Report on LeadFL: Client
    Self-Defense against Model Poisoning in Federated Learning" (eq. 4-6):

    .. math::
        \tilde W_{i+1} &= W_i - \eta\, g_i \\
        \eta \tilde H_i &= W_i - \tilde W_{i+1} + (W_i - W_{i-1}) \\
        W_{i+1} &= \tilde W_{i+1} - \eta\,\alpha\,
                   \mathrm{clip}(\nabla_{\tilde W}\lVert 1 - \eta \tilde H_i\rVert, q)

    The first local step of a round has no W_{i-1} and is not regularised. In bfloat16 weights
    (``precision: bf16-true``) most of the second steps round away.

    Args:
        alpha: weight of the regulariser, >= 0; 0 is plain SGD, but for the clipped second step of
            ``"released"``.
        clip: elementwise clipping threshold q, > 0.
        norm: ``"l2"`` is the Frobenius norm of each parameter tensor, ``"squared"`` half its
            square (whose gradient is about 1 everywhere, so that the clip is what bounds it).
        formulation: ``"corrected"`` is what stands above, ``"released"`` runs what the code of
            Zhu, Roos and Chen does, see Differences.
        parameters: ``"all"`` trainable ones or ``"weights"`` only; ``"released"`` always takes
            the weights.

    Raises:
        ConfigError: a setting out of range; ``"released"`` with another norm than ``"l2"``.

    >>> LeadFL(alpha=-1.0)
    Traceback (most recent call last):
    ...
    leadfl_pl.core.errors.ConfigError: LeadFL: alpha must be >= 0, got alpha = -1.0

    References:
        Zhu, Roos, Chen. LeadFL: Client Self-Defense against Model Poisoning in Federated
        Learning. ICML 2023.
        Guthmann, Tan. Report on LeadFL: Client Self-Defense against Model Poisoning in Federated
        Learning.

    Differences of ``formulation="released"`` (github.com/chaoyitud/LeadFL at 06ecc98):
        1. S = W~ - W_old - G - eta stands where V stands here; G is the gradient buffer that the
           previous local step left behind, clipped, not eta times a gradient.
        2. The regulariser's gradient alpha * S / ||S||_F is *added* to the task gradient, which
           is thus applied twice; the sum is clipped for every parameter, biases included.
        3. The second step goes through the optimizer, so both steps share its momentum.
        4. The memory is emptied at the start of each local epoch, not of each round.
    """

    def __init__(
        self,
        alpha: float = 0.4,
        clip: float = 0.2,
        norm: Norm = "l2",
        formulation: Formulation = "corrected",
        parameters: ParameterChoice = "all",
    ) -> None:
        require_choice("LeadFL", "norm", norm, ("l2", "squared"))
        require_choice("LeadFL", "formulation", formulation, ("corrected", "released"))
        require_choice("LeadFL", "parameters", parameters, ("all", "weights"))
        require_number("LeadFL", "alpha", alpha, least=0)
        require_number("LeadFL", "clip", clip, above=0)
        if formulation == "released" and norm != "l2":
            raise ConfigError(
                "LeadFL: formulation = released has norm = l2 only, got norm = squared"
            )
        self.alpha = alpha
        self.clip = clip
        self.norm: Norm = norm
        self.formulation: Formulation = formulation
        self.parameters: ParameterChoice = "weights" if formulation == "released" else parameters

    @property
    def idle_first(self) -> Literal["round", "epoch"]:
        return "epoch" if self.formulation == "released" else "round"

    @takes_stacks
    def start(self, names: Sequence[str], params: list[Tensor]) -> LeadFLState:
        index = chosen(names, self.parameters)
        return LeadFLState(index, clones(pick(params, index)), None, [])

    @takes_stacks
    def after_step(self, step: LocalStep, state: LeadFLState) -> LeadFLState:
        if self.formulation == "released":
            return self._after_step_released(step, state)
        params = pick(step.params, state.where)
        norms = state.norms
        if state.memory is not None:
            gradient, norms = leadfl_gradient(
                params, state.weights, state.memory, self.clip, self.norm, bool(step.generators)
            )
            torch._foreach_add_(params, gradient, alpha=-step.lr * self.alpha)
        change = torch._foreach_sub(params, state.weights)
        torch._foreach_copy_(state.weights, params)
        return LeadFLState(state.where, state.weights, list(change), norms)

    def _after_step_released(self, step: LocalStep, state: LeadFLState) -> LeadFLState:
        params, grads = pick(step.params, state.where), pick(step.grads, state.where)
        norms = state.norms
        if state.memory is not None and not step.epoch_start:
            gradient, norms = released_gradient(
                params, state.weights, state.memory, step.lr, bool(step.generators)
            )
            torch._foreach_add_(grads, gradient, alpha=self.alpha)
            torch._foreach_clamp_min_(step.grads, -self.clip)
            torch._foreach_clamp_max_(step.grads, self.clip)
            step.optimizer_step()
        torch._foreach_copy_(state.weights, params)
        return LeadFLState(state.where, state.weights, clones(grads), norms)

    @takes_stacks
    def regulariser(self, state: LeadFLState) -> Tensor | None:
        if not state.norms:
            return None
        norms = torch.stack(state.norms)  # (tensors,), of m clients (tensors, m)
        penalty = norms.sum(dim=0) if self.norm == "l2" else 0.5 * norms.square().sum(dim=0)
        return self.alpha * penalty
