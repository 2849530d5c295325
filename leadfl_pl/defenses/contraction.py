"""Contraction: the effect of a past attack fades with a set half-life."""

from __future__ import annotations

from math import exp, expm1, inf, log
from typing import Any, Literal

import torch

from leadfl_pl.core.errors import ConfigError, require_choice, require_number
from leadfl_pl.core.values import LocalStep, takes_stacks
from leadfl_pl.defenses.base import ClientDefense, pick


class Contraction(ClientDefense):
    r"""Contraction: the chosen parameters shrink by :math:`2^{-1/T}` in a round, T its half-life.

    After each of the I local steps of a round,

    .. math::
        W_{i+1} = s\,(W_i - \eta\, g_i), \qquad s = 2^{-1/(T I)},

    so that a round shrinks by :math:`s^I = 2^{-1/T}`, whatever the learning rate, the batch size
    and the number of local steps. It is decoupled weight decay with a rate set in rounds.

    Why: in the attack effect :math:`\delta_t = W_t - W_t^M`, the difference from the run in which
    the malicious clients were honest, LeadFL's analysis finds the factors :math:`I - \eta H_i`.
    Here every one of them is :math:`s\,(I - \eta H_i)`, without an estimate of H.

    For a loss that is convex and beta-smooth in W, with ``parameters="all"``, plain SGD with
    :math:`\eta \le 2/\beta`, ``FedAvg`` and ``server_lr`` 1,

    .. math::
        \lVert\delta_{t+k}\rVert \le 2^{-k/T}\, \lVert\delta_t\rVert

    over k rounds without attackers, for any data and whatever the attack before them was. That is
    a theorem; networks, other parameters, rules that select and momentum have none, and their
    half-life is to be measured. Under :class:`~leadfl_pl.SparseFed` with momentum, and under
    :class:`~leadfl_pl.FLTrust` with a root data set much larger than a client's, T = 4 or 8
    ruined the model. Derivation: docs/contraction.md.

    Weights kept in bfloat16 (``precision: bf16-true``) are rounded after every step: their
    half-life is not T, and where T I is above 355 they do not shrink at all. Float32, which
    ``bf16-mixed`` keeps too, is exact enough.

    With ``anchor="initial"`` it is the distance from the initial model :math:`W_0` that shrinks,
    :math:`W_{i+1} = W_0 + s\,(W_i - \eta\, g_i - W_0)`, and all of the above holds as well.

    Args:
        half_life: T in rounds, > 0; infinity is plain SGD. To be chosen for the task: the shorter,
            the sooner a backdoor is gone and the more main accuracy it may cost.
        parameters: ``"matrices"`` are the tensors of at least two dimensions, neither biases nor
            the scale and shift of a normalisation; ``"all"`` are all trainable ones.
        anchor: what they shrink to: ``"zero"``, or ``"initial"``, the first global model of the
            run, which a checkpoint then carries.

    Raises:
        ConfigError: half_life <= 0 or NaN; another choice than those named.

    Shrinking by hand, two local steps with a half-life of one round and gradients of zero:

    >>> W, defense = torch.ones(1, 2), Contraction(half_life=1.0)
    >>> for i in range(2):
    ...     _ = defense.after_step(LocalStep(
    ...         ["weight"], [W], [torch.zeros(1, 2)], 0.1, i, 2, False, lambda: None,
    ...         torch.Generator()), None)
    >>> W
    tensor([[0.5000, 0.5000]])

    References:
        Baillon, Haddad. Quelques propriétés des opérateurs angle-bornés et n-cycliquement
        monotones. Israel Journal of Mathematics 26, 1977.
        Loshchilov, Hutter. Decoupled Weight Decay Regularization. ICLR 2019.
        Zhu, Roos, Chen. LeadFL: Client Self-Defense against Model Poisoning in Federated
        Learning. ICML 2023 (the factors I - eta H).

    Differences:
        1. Loshchilov and Hutter shrink W_i and then add the step; here the step shrinks as well,
           which is what makes a local step contract by s.
    """

    def __init__(
        self,
        half_life: float = 4.0,
        parameters: Literal["matrices", "all"] = "matrices",
        anchor: Literal["zero", "initial"] = "zero",
    ) -> None:
        if half_life != inf:
            require_number("Contraction", "half_life", half_life, above=0)
        require_choice("Contraction", "parameters", parameters, ("matrices", "all"))
        require_choice("Contraction", "anchor", anchor, ("zero", "initial"))
        self.half_life = half_life
        self.parameters = parameters
        self.anchor = anchor

    @property
    def needs_initial(self) -> bool:  # type: ignore[override]
        return self.anchor == "initial"

    @takes_stacks
    def after_step(self, step: LocalStep, state: Any) -> Any:
        least = 2 + bool(step.generators) if self.parameters == "matrices" else 0
        index = [i for i, p in enumerate(step.params) if p.ndim >= least]
        if not index:
            raise ConfigError(
                "Contraction: parameters = matrices needs a trainable parameter of two dimensions "
                f"or more, got {', '.join(step.names)}: take parameters = all"
            )
        chosen = pick(step.params, index)
        exponent = -log(2) / (self.half_life * step.num_steps)
        if self.anchor == "zero":
            torch._foreach_mul_(chosen, exp(exponent))
        else:
            assert step.initial is not None  # since it needs_initial
            torch._foreach_lerp_(chosen, pick(step.initial, index), -expm1(exponent))
        return state
