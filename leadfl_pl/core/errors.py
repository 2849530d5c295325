"""Settings that cannot work are one sentence: the key, its value, and what would be right."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import isfunction, signature
from math import inf
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 10**6  # a factor beyond it only overflows float32, or is a slip of the keyboard
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class ConfigError(ValueError):
    """A setting that cannot work. The message names the key, its value and what would be right."""


@contextmanager
def errors_of(method: str) -> Iterator[None]:
    """Turns what a user's ``method`` raises into a :class:`ConfigError` that says where."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{method} raised {where(error)}") from error


def where(error: BaseException) -> str:
    """An exception, and the line from which it came."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    named = isinstance(error, OSError)  # its repr leaves the file's name out
    what = f"{type(error).__name__}({error})" if named else repr(error)
    return f"{what} in {frame.name}() at {frame.filename}, line {frame.lineno}"


def require_choice(owner: str, key: str, value: str, choices: Sequence[str]) -> None:
    """Raises :class:`ConfigError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(
            f"{_setting(owner, key)} must be one of {', '.join(choices)}, got {key} = {value}"
        )


def require_number(
    owner: str,
    key: str,
    value: Any,
    *,
    least: float = -LARGEST,
    above: float = -inf,
    most: float = LARGEST,
    below: float = inf,
    whole: bool = False,
) -> None:
    """Raises :class:`ConfigError` unless ``value`` is a number in this range.

    NaN, the infinities, booleans and what is no number are always refused, and so is anything
    beyond :data:`LARGEST` unless a bound says otherwise.

    >>> require_number("LeadFL", "alpha", -0.4, least=0)
    Traceback (most recent call last):
    ...
    leadfl_pl.core.errors.ConfigError: LeadFL: alpha must be >= 0, got alpha = -0.4
    """
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not is_number or not abs(value) < inf:
        wanted = "a whole number" if whole else "a finite number"
    elif value < least:
        wanted = f">= {least}"
    elif value <= above:
        wanted = f"> {above}"
    elif value > most:
        wanted = f"<= {most}"
    elif value >= below:
        wanted = f"< {below}"
    else:
        return
    raise ConfigError(f"{_setting(owner, key)} must be {wanted}, got {key} = {value}")


def require_numbers(
    owner: str,
    key: str,
    values: Any,
    *,
    least: float,
    most: float = LARGEST,
    length: int | None = None,
) -> None:
    """Raises :class:`ConfigError` unless ``values`` are whole numbers, ``length`` of them."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or len(values) != (length or len(values)):
        number = f"{length} " if length else ""
        raise ConfigError(
            f"{_setting(owner, key)} must be {number}whole numbers, got {key} = {values}"
        )
    for value in values:
        require_number(owner, key, value, least=least, most=most, whole=True)


def _setting(owner: str, key: str) -> str:
    """The name of a setting: of a class, or where it stands in a configuration."""
    return f"{owner}.{key}" if owner.islower() else f"{owner}: {key}"


def require_federation(callback: object, trainer: object) -> None:
    """Raises :class:`ConfigError` unless the callback's Trainer is a FederatedTrainer."""
    if not hasattr(trainer, "federation"):
        name, kind = type(callback).__name__, type(trainer).__name__
        raise ConfigError(f"{name} needs a FederatedTrainer, got {kind}")


def require_override(key: str, value: object, base: type) -> None:
    """Raises :class:`ConfigError` unless ``value`` adds something to its base class.

    The base class does nothing by itself, and neither does a subclass with other methods than the
    base's, for example with a misspelt one. A subclass that adds no method at all is meant so.
    """
    cls, known = type(value), [n for n, m in vars(base).items() if callable(m) and n[0] != "_"]
    parts = [part for part in cls.__mro__ if part not in base.__mro__]
    added = {n for part in parts for n, m in vars(part).items() if callable(m) and n[0] != "_"}
    if cls is base or (added and not added & set(known)):
        more = f" with {', '.join(sorted(added))}" if added else ""
        raise ConfigError(
            f"{key} must be a subclass of {base.__name__} that overrides one of its methods "
            f"{', '.join(known)}, got {cls.__name__}{more}"
        )
    require_signatures(value, base)


def require_signatures(value: object, base: type) -> None:
    """Raises :class:`ConfigError` unless the methods of ``value`` take the arguments of ``base``'s.

    >>> class Zero:
    ...     def finish(self, delta): ...
    >>> class One(Zero):
    ...     def finish(self): ...
    >>> require_signatures(One(), Zero)
    Traceback (most recent call last):
    leadfl_pl.core.errors.ConfigError: One.finish must take (self, delta), got (self)
    """
    for name, method in vars(base).items():
        own = getattr(type(value), name)
        if name[0] == "_" or not isfunction(method) or not isfunction(own) or own is method:
            continue
        wanted, got = signature(method), signature(own)
        try:
            got.bind(*wanted.parameters)
        except TypeError:
            names = ", ".join(wanted.parameters)
            raise ConfigError(
                f"{type(value).__name__}.{name} must take ({names}), "
                f"got ({', '.join(got.parameters)})"
            ) from None


def require_tensor(
    demand: str,
    value: object,
    shape: Sequence[int | str],
    *dtypes: torch.dtype,
    finite: bool = False,
) -> None:
    """Raises :class:`ConfigError` unless a user's method returned a tensor like this.

    Args:
        demand: the start of the message, up to "must return".
        value: what was returned.
        shape: a size is a number, or a letter if any will do.
        dtypes: those that will do; any if not given.
        finite: neither NaN nor infinity will do.

    >>> require_tensor("Mine.finish must return", None, (2730,))
    Traceback (most recent call last):
    ...
    leadfl_pl.core.errors.ConfigError: Mine.finish must return a tensor of shape (2730,), got None
    """
    sizes = ", ".join(str(size) for size in shape) + "," * (len(shape) == 1)
    if (
        not isinstance(value, Tensor)
        or len(value.shape) != len(shape)
        or any(isinstance(s, int) and s != n for s, n in zip(shape, value.shape, strict=True))
    ):
        raise ConfigError(f"{demand} a tensor of shape ({sizes}), got {summarise(value)}")
    if dtypes and value.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ConfigError(f"{demand} a tensor of {names}, got {summarise(value)}")
    if finite and not bool(value.isfinite().all()):
        raise ConfigError(f"{demand} finite numbers, got NaN or infinity")


def summarise(value: object) -> str:
    """What a value is, for messages.

    >>> summarise([torch.zeros(2, 3), None])
    'list(float32 of shape (2, 3), None)'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        more = ", ..." if len(value) > 3 else ""
        return f"{type(value).__name__}({', '.join(summarise(v) for v in value[:3])}{more})"
    return "None" if value is None else type(value).__name__
