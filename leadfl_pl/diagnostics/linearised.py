"""How a difference between two models goes through a client's local training, linearised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.rng import isolated_rng
from leadfl_pl.core.values import LocalStep
from leadfl_pl.defenses import ClientDefense, check_defense
from leadfl_pl.defenses.base import clones
from leadfl_pl.diagnostics.replay import Observed, Observer
from leadfl_pl.federation.vectorised.model import sgd_

# H_i v: from W_i, g_i with its graph, g_{i-1} (None in the first step of a round) and v
Product = Callable[
    [Sequence[Tensor], Sequence[Tensor], Sequence[Tensor] | None, list[Tensor]], list[Tensor]
]


def hessian_vector_product(
    grads: Sequence[Tensor], params: Sequence[Tensor], vector: Sequence[Tensor]
) -> list[Tensor]:
    r"""H v, exactly: the derivative of :math:`g^\top v` by the parameters.

    Args:
        grads: g, the gradient of a loss by ``params``, with its graph (``create_graph=True``).
        params: W, the same shapes.
        vector: v, the same shapes.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> g = torch.autograd.grad((w[0] * w[1] ** 2).sum(), [w], create_graph=True)
    >>> hessian_vector_product(g, [w], [torch.tensor([1.0, 0.0])])  # H = [[0, 4], [4, 2]]
    [tensor([0., 4.])]
    """
    curved = [(g, v) for g, v in zip(grads, vector, strict=True) if g.requires_grad]
    if not curved:  # a loss that is linear in all of them
        return [torch.zeros_like(p) for p in params]
    outputs, directions = zip(*curved, strict=True)
    products = torch.autograd.grad(
        outputs, list(params), directions, retain_graph=True, materialize_grads=True
    )
    return list(products)


def exact_product(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    last_grads: Sequence[Tensor] | None,
    vector: list[Tensor],
) -> list[Tensor]:
    """H_i v of the step's batch."""
    return hessian_vector_product(grads, params, vector)


def diagonal_product(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    last_grads: Sequence[Tensor] | None,
    vector: list[Tensor],
) -> list[Tensor]:
    """The diagonal g_i - g_{i-1} of equation (3) times v; zero in the first step of a round."""
    if last_grads is None:
        return [torch.zeros_like(v) for v in vector]
    triples = zip(grads, last_grads, vector, strict=True)
    return [(g.detach() - last) * v for g, last, v in triples]


def zero_product(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    last_grads: Sequence[Tensor] | None,
    vector: list[Tensor],
) -> list[Tensor]:
    """H = 0, for comparison: what the defense alone does to v."""
    return [torch.zeros_like(v) for v in vector]


class _Course:
    """A course of local training in float64, along given gradients."""

    def __init__(self, defense: ClientDefense, momentum: float) -> None:
        self.defense, self.momentum = defense, momentum

    def start(self, names: Sequence[str], params: list[Tensor]) -> None:
        self.params = params  # W_i
        self.first = [p.clone() for p in params]
        self.momenta = [torch.zeros_like(p) for p in params]
        with isolated_rng():  # a defense may draw from global generators: all the same numbers
            self.state: Any = self.defense.start(names, params)

    def step(self, step: LocalStep, grads: list[Tensor]) -> None:
        """The optimizer's step and the defense's, as in the real one ``step``."""

        def optimizer_step() -> None:
            sgd_(self.params, grads, self.momenta, step.lr, self.momentum)

        optimizer_step()
        with isolated_rng():
            self.state = self.defense.after_step(
                step._replace(
                    params=list(self.params),
                    grads=grads,
                    optimizer_step=optimizer_step,
                    generator=copied(step.generator),
                    gradient_at=self._refuse,
                    initial=None if step.initial is None else wide_copies(step.initial),
                ),
                self.state,
            )

    def _refuse(self, params: list[Tensor]) -> list[Tensor]:
        raise ConfigError(
            "the attack effect is propagated with the gradients of the local steps: model.defense "
            f"must ask for no gradient_at other parameters, got {type(self.defense).__name__}"
        )

    def sent(self, generator: torch.Generator) -> Tensor:
        """The update (m,) of the trainable parameters that the client sends."""
        changes = torch._foreach_sub(self.params, self.first)
        delta = torch.cat([change.flatten() for change in changes])
        with isolated_rng():
            return self.defense.finish(delta, copied(generator))


class Propagation(Observer):
    r"""Carries differences v between two models along a client's local training.

    .. math:: v_{i+1} = D_i\big(\tilde W_{i+1} + (I - \eta H_i)\, v_i\big) - D_i(\tilde W_{i+1})

    along the real :math:`W_i` and batches, where :math:`D_i` is what the client-side defense makes
    of the step's result: the gradient is linearised in v, as in the factors of equation (2), the
    defense is not. It is run on both models, with the same noise, so that any will do, whether it
    has a derivative or not, but one that asks for gradients elsewhere, as ``SAM`` does. For plain
    SGD the factors are :math:`I - \eta H_i`, for ``Contraction`` :math:`s\,(I - \eta H_i)`.

    Args:
        defense: of the client.
        momentum: of the client's SGD. With momentum the buffers are carried along too.
        vectors: v_0 by name, trainable parameter by trainable parameter.
        products: what stands for H_i v, by the same names.

    Attributes:
        changes: after the client's round, by name the difference (m,) of the updates that are sent
            from the two models.

    Differences:
        1. Equation (2) writes no momentum and no defense.
        2. ``diagonal_product`` is equation (3) with the gradients that the client computes, each
           on its step's batch. The last of its I factors would need a gradient at the end of the
           round, which nobody computes, and is left out.
    """

    def __init__(
        self,
        defense: ClientDefense,
        momentum: float,
        vectors: Mapping[str, list[Tensor]],
        products: Mapping[str, Product],
    ) -> None:
        self.vectors, self.products = vectors, products
        self.real = _Course(defense, momentum)
        self.moved = {name: _Course(defense, momentum) for name in vectors}
        self.last_grads: list[Tensor] | None = None
        self.curved: dict[str, list[Tensor]] = {}  # H_i v by name

    def start(self, names: Sequence[str], params: list[Tensor]) -> None:
        self.real.start(names, wide_copies(params))
        for name, course in self.moved.items():
            course.start(names, list(torch._foreach_add(wide_copies(params), self.vectors[name])))

    def gradient(self, params: list[nn.Parameter], grads: list[Tensor]) -> None:
        for name, course in self.moved.items():
            pairs = zip(course.params, self.real.params, grads, strict=True)
            vector = [(moved - real).to(g.dtype) for moved, real, g in pairs]
            self.curved[name] = self.products[name](params, grads, self.last_grads, vector)
        self.last_grads = clones(grads)  # a defense may change them in place

    def after_step(self, step: LocalStep) -> None:
        grads = wide_copies(step.grads)
        for name, course in self.moved.items():
            course.step(step, list(torch._foreach_add(grads, self.curved[name])))
        self.real.step(step, grads)

    def finish(self, generator: torch.Generator) -> None:
        real = self.real.sent(generator)
        self.changes = {name: c.sent(generator) - real for name, c in self.moved.items()}


def require_propagation(defense: ClientDefense, named: Sequence[tuple[str, Tensor]]) -> None:
    """Raises :class:`ConfigError` if :class:`Propagation`, tried once, cannot run the defense.

    Args:
        defense: of the client.
        named: the trainable parameters, which stay as they are.
    """
    tried = Observed(defense, Propagation(defense, 0.0, {}, {}))
    check_defense(tried, [name for name, _ in named], [p for _, p in named])


def wide_copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in float64."""
    return [t.to(torch.float64, copy=True) for t in tensors]


def copied(generator: torch.Generator) -> torch.Generator:
    """A generator that draws what this one would draw next."""
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy
