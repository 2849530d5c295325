"""Whether a defense returns what it must: asked once, before the first round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from leadfl_pl.core.errors import FLOATS, ConfigError, require_tensor
from leadfl_pl.core.rng import isolated_rng
from leadfl_pl.core.values import LocalStep
from leadfl_pl.defenses.base import ClientDefense, clones


def check_update(defense: ClientDefense, delta: Tensor, sent: Tensor) -> None:
    """Raises :class:`ConfigError` unless ``sent`` can be what ``finish`` made of ``delta`` (d,).

    What training made infinite or NaN is not the defense's fault.
    """
    demand = f"{type(defense).__name__}.finish must return"
    trained_well = bool(delta.isfinite().all())
    require_tensor(demand, sent, delta.shape, delta.dtype, finite=trained_well)


def check_defense(defense: ClientDefense, names: Sequence[str], params: Sequence[Tensor]) -> None:
    """Runs the defense through two local steps on copies and checks all that it returns.

    Args:
        defense: any; it is called as for one client, with random gradients.
        names, params: of the trainable parameters, which stay as they are.

    Raises:
        ConfigError: something has another type, shape or range than :class:`ClientDefense` says.
    """
    name, num_steps, lr = type(defense).__name__, 2, 0.01
    params = clones(params)
    shapes = [p.shape for p in params]
    initial = clones(params) if defense.needs_initial else None
    rng = torch.Generator(params[0].device).manual_seed(0)
    with isolated_rng(0), torch.no_grad():
        start = torch.cat([p.flatten() for p in params])
        state = defense.start(names, params)
        for i in range(num_steps):
            given, grads = list(params), [torch.randn_like(p) for p in params]
            sgd_step = partial(torch._foreach_add_, params, grads, alpha=-lr)
            sgd_step()
            step = LocalStep(
                names, given, grads, lr, i, num_steps, i == 0, sgd_step, rng, initial=initial,
                gradient_at=lambda at: [torch.randn_like(p) for p in at],
            )  # fmt: skip
            last, state = state, defense.after_step(step, state)
            if last is not None and state is None:
                raise ConfigError(f"{name}.after_step must return the next state, got None")
            if list(map(id, given)) != list(map(id, params)):
                raise ConfigError(
                    f"{name}.after_step must change step.params in place, got other tensors in it"
                )
            for p, before in zip(params, shapes, strict=True):
                require_tensor(f"{name}.after_step must leave", p, before, p.dtype, finite=True)
        if (penalty := defense.regulariser(state)) is not None:
            require_tensor(f"{name}.regulariser must return None or", penalty, (), *FLOATS)
        delta = torch.cat([p.flatten() for p in params]) - start
        check_update(defense, delta, defense.finish(delta.clone(), rng))
