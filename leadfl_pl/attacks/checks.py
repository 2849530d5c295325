"""Whether an attack returns what it must: asked once, before the first round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, AttackWrapper, carrier
from leadfl_pl.core.errors import FLOATS, ConfigError, require_tensor, summarise
from leadfl_pl.core.rng import isolated_rng
from leadfl_pl.core.values import AttackerView


def check_attack(attack: Attack, view: AttackerView, num_classes: int) -> None:
    """Calls everything but :meth:`Attack.corrupt` once and checks what comes back.

    Args:
        attack: any.
        view: of some malicious client; up to 32 of its images are one batch.
        num_classes: C; labels are in 0 .. C - 1.

    Raises:
        ConfigError: something has another type, shape or range than :class:`Attack` says.
    """
    x, y = view.images[:32], view.labels[:32]
    params = [p.detach() for p in view.model.parameters() if p.requires_grad]
    with isolated_rng(0):
        attack.adapt(view)
        attack.load_state_dict(attack.state_dict())
        local = attack.local(view)
        if not isinstance(local, Attack):
            raise _wrong(attack, "local", "an Attack", local)
        tasks = local.tasks(x, y)
        if not isinstance(tasks, (list, tuple)) or not tasks:
            raise _wrong(local, "tasks", "a list of (images, labels)", tasks)
        for task in tasks:
            if not isinstance(task, (list, tuple)) or len(task) != 2:
                raise _wrong(local, "tasks", "a list of (images, labels)", tasks)
            _check_batch(_demand(local, "tasks"), *task, ("B", *x.shape[1:]), x.dtype, num_classes)
        gradients = [[torch.randn_like(p) for p in params] for _ in tasks]
        weights = local.balance(torch.rand(len(tasks), device=y.device), gradients)
        require_tensor(_demand(local, "balance"), weights, (len(tasks),), *FLOATS, finite=True)
        projected = local.project(gradients[0])
        if not isinstance(projected, (list, tuple)) or len(projected) != len(params):
            raise _wrong(local, "project", f"a list of {len(params)} gradients", projected)
        for gradient, p in zip(projected, params, strict=True):
            demand = f"{_demand(local, 'project')} as a gradient"
            require_tensor(demand, gradient, p.shape, p.dtype, finite=True)
        moved = [torch.randn_like(p) for p in params]
        local.constrain(moved, params, 0, 1)
        demand = f"{type(carrier(local, 'constrain')).__name__}.constrain must leave"
        for tensor, p in zip(moved, params, strict=True):
            require_tensor(demand, tensor, p.shape, p.dtype, finite=True)
        triggered = attack.trigger(x, y)
    if triggered is not None:
        if not isinstance(triggered, (list, tuple)) or len(triggered) != 3:
            raise _wrong(attack, "trigger", "None or (images, labels, which count)", triggered)
        images, labels, counts = triggered
        demand = _demand(attack, "trigger")
        _check_batch(demand, images, labels, x.shape, x.dtype, num_classes)
        require_tensor(f"{demand} as those which count", counts, y.shape, torch.bool)


def try_corrupt(attack: Attack, updates: Tensor) -> None:
    """Calls :meth:`Attack.corrupt` once, as if half of ``updates`` (n, d) were malicious.

    Raises:
        ConfigError: see :func:`check_corrupted`.
    """
    malicious = torch.arange(len(updates), device=updates.device) < max(1, len(updates) // 2)
    rng = torch.Generator(updates.device).manual_seed(0)
    with isolated_rng(0):
        sent = attack.corrupt(updates.clone(), malicious, rng)
    check_corrupted(attack, updates, malicious, sent)


def check_corrupted(attack: Attack, updates: Tensor, malicious: Tensor, sent: Tensor) -> None:
    """Raises :class:`ConfigError` unless ``sent`` can be what ``corrupt`` made of ``updates``.

    Only the rows of attackers may differ; these may hold anything, NaN included.
    """
    require_tensor(_demand(attack, "corrupt"), sent, updates.shape, updates.dtype)
    if not torch.equal(sent[~malicious], updates[~malicious]):
        raise ConfigError(
            f"{_demand(attack, 'corrupt')} the updates of honest clients as they are, got others"
        )


def _check_batch(
    demand: str, images: Any, labels: Any, shape: tuple[Any, ...], dtype: torch.dtype, classes: int
) -> None:
    require_tensor(f"{demand} as images", images, shape, dtype, finite=True)
    require_tensor(f"{demand} as labels", labels, (len(images),), torch.int64)
    if not len(images):
        raise ConfigError(f"{demand} one image or more, got none")
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise ConfigError(f"{demand} labels in 0 .. {classes - 1}, got {labels.unique().tolist()}")


def _demand(attack: Attack, method: str) -> str:
    return f"{type(carrier(attack, method)).__name__}.{method} must return"


def _wrong(attack: Attack, method: str, wanted: str, returned: object) -> ConfigError:
    return ConfigError(f"{_demand(attack, method)} {wanted}, got {summarise(returned)}")


def layers(attack: Attack) -> Iterator[Attack]:
    """The attack, and what it wraps, from outside in."""
    yield attack
    if isinstance(attack, AttackWrapper):
        yield from layers(attack.attack)


def check_layers(attack: Attack, key: str) -> None:
    """Raises :class:`ConfigError` if one changes what another sends that holds back at times."""
    all_layers = list(layers(attack))
    timed = next((i for i, layer in enumerate(all_layers) if layer.holds_back), 0)
    for layer in all_layers[:timed]:
        for method in ("tasks", "project", "constrain", "corrupt"):
            if getattr(type(layer), method) is not getattr(AttackWrapper, method):
                names = " around ".join(type(layer).__name__ for layer in all_layers)
                raise ConfigError(
                    f"{key} must have nothing around {type(all_layers[timed]).__name__} that "
                    f"defines {method}(), which would be called in its honest rounds as well, "
                    f"got {names}"
                )
