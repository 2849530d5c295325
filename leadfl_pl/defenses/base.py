"""What a client-side defense can do, and what several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from leadfl_pl.core.errors import ConfigError, require_choice, require_number
from leadfl_pl.core.values import LocalStep, takes_stacks

ParameterChoice = Literal["all", "weights"]


class ClientDefense:
    """What an honest client does besides plain local training. The base class does nothing.

    A defense is stateless: what it remembers within a round is returned by :meth:`start` and
    :meth:`after_step` and handed back at the next step, so one object serves all clients.

    :meth:`start`, :meth:`after_step` and :meth:`regulariser` may bear the mark of
    :func:`~leadfl_pl.takes_stacks`: vectorised execution then calls them for many clients
    at once, otherwise client by client.
    """

    needs_initial = False  #: the run's first global model, in every LocalStep

    @property
    def idle_first(self) -> Literal["round", "epoch"] | None:
        """Of which the first local step is plain SGD; None if each does something."""
        return None

    @takes_stacks
    def start(self, names: Sequence[str], params: list[Tensor]) -> Any:
        """The state at the start of a round; ``params`` is the global model W_{t,0}."""
        return None

    @takes_stacks
    def after_step(self, step: LocalStep, state: Any) -> Any:
        """Changes ``step.params`` in place after local step i and returns the next state."""
        return state

    def finish(self, delta: Tensor, generator: torch.Generator) -> Tensor:
        """The update (d,) that is sent, given the one that local training gave."""
        return delta

    @takes_stacks
    def regulariser(self, state: Any) -> Tensor | None:
        """The penalty () of the last local step for logging; None for a defense without one.

        With :func:`~leadfl_pl.takes_stacks`, (m,) for m clients.
        """
        return None


class NoDefense(ClientDefense):
    """Plain local SGD: W_{i+1} = W_i - eta * g_i."""


def chosen(names: Sequence[str], which: ParameterChoice) -> list[int]:
    """Positions of the parameters that a defense acts on.

    ``"weights"`` are those with "weight" in their name, as the released code selects them
    (BatchNorm's scale is one of them).

    >>> chosen(["conv.weight", "conv.bias", "bn.weight"], "weights")
    [0, 2]

    Raises:
        ConfigError: there are none.
    """
    index = [i for i, name in enumerate(names) if which == "all" or "weight" in name]
    if not index:
        raise ConfigError(
            "parameters = weights, which formulation = released has, needs trainable parameters "
            f"with weight in their names, got {', '.join(names)}"
        )
    return index


def pick(tensors: Sequence[Tensor], index: Sequence[int]) -> list[Tensor]:
    """``[tensors[i] for i in index]``."""
    return [tensors[i] for i in index]


def clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Detached copies: a stored reference to a gradient is overwritten by the next backward."""
    return [t.detach().clone() for t in tensors]


def per_client(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (m,) in a shape that broadcasts over ``like`` (m, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def laplace_noise(
    like: list[Tensor],
    scale: float,
    generator: torch.Generator,
    generators: Sequence[torch.Generator] = (),
) -> list[Tensor]:
    """Independent Laplace(0, scale) float32 draws, one tensor for each of ``like``.

    By inversion, in one piece, so that the cost does not depend on the number of tensors. With
    ``generators``, row i of each tensor comes from ``generators[i]``, as if it were alone.
    """
    sizes = [t.numel() // max(1, len(generators)) for t in like]
    shape = (max(1, len(generators)), sum(sizes))
    uniform = torch.empty(shape, dtype=torch.float32, device=generator.device)
    low = torch.finfo(uniform.dtype).eps - 1
    for row, source in zip(uniform, generators or (generator,), strict=True):
        row.uniform_(low, 1, generator=source)
    noise = (1 - uniform.abs()).log_().mul_(-scale).copysign_(uniform)
    parts = noise.split(sizes, dim=1)
    return [n.view_as(t) for n, t in zip(parts, like, strict=True)]


def add_noise_(params: list[Tensor], noise: list[Tensor], lr: float) -> None:
    """W <- W + eta * noise, in place; the product is rounded in the noise's dtype."""
    torch._foreach_mul_(noise, lr)
    torch._foreach_add_(params, noise)


class LaplaceDefense(ClientDefense):
    """The settings that FL-WBC and LDP share; their own docstrings say what they mean."""

    def __init__(
        self,
        scale: float = 0.2,
        formulation: Literal["paper", "released"] = "paper",
        parameters: ParameterChoice = "all",
    ) -> None:
        owner = type(self).__name__
        require_choice(owner, "formulation", formulation, ("paper", "released"))
        require_choice(owner, "parameters", parameters, ("all", "weights"))
        require_number(owner, "scale", scale, least=0)
        self.scale = scale
        self.formulation = formulation
        self.parameters: ParameterChoice = "weights" if formulation == "released" else parameters

    @property
    def idle_first(self) -> Literal["round", "epoch"]:
        return "epoch" if self.formulation == "released" else "round"
