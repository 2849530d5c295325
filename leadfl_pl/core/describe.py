"""Settings as plain data, so that two runs can be compared and a record can be read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from torch import Tensor, nn

SHORT = 64  # entries up to which a tensor is spelled out


def describe(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A setting as numbers, strings, lists and dicts; equal settings give equal descriptions.

    An object is its class and its public attributes, a module also its children and the buffers
    that are no part of its state; trained numbers are left out. What is long is its hash.

    Args:
        value: anything.
        within: ids of the objects that it is a part of; one of them again is its class alone.

    >>> describe((3, 23)), describe(float("nan"))
    ([3, 23], 'nan')
    >>> describe(nn.Dropout(0.2))
    {'class': 'torch.nn.modules.dropout.Dropout', 'p': 0.2, 'inplace': False}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # NaN is not equal to itself
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item, within) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((describe(item, within) for item in value), key=str)
    if isinstance(value, (list, tuple, range)):
        items = [describe(item, within) for item in value]
        return (
            items if len(items) <= SHORT else f"{len(items)} items, {_digest(str(items).encode())}"
        )
    if isinstance(value, Tensor):
        return describe(value.detach().cpu().double().numpy())
    if isinstance(value, np.ndarray):
        if value.size <= SHORT:
            return describe(value.tolist())
        return f"{value.shape}, {_digest(np.ascontiguousarray(value).tobytes())}"
    if not hasattr(value, "__dict__") or isinstance(value, type) or callable_name(value):
        return callable_name(value) or re.sub(r" at 0x\w+", "", repr(value))
    settings = {k: v for k, v in vars(value).items() if not k.startswith("_")}
    if isinstance(value, nn.Module):
        settings.pop("training", None)
        settings |= dict(value.named_children())
        state = value.state_dict(keep_vars=True)
        settings |= {k: b for k, b in value.named_buffers(recurse=False) if k not in state}
    name = callable_name(type(value))
    if id(value) in within:
        return name
    return {"class": name} | describe(settings, (*within, id(value)))


def callable_name(value: Any) -> str | None:
    """The name of a function or a class; None for anything else."""
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def first_difference(saved: Any, current: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """Where two descriptions differ first: the dotted key and both values; None if nowhere.

    >>> first_difference({"a": {"lr": 0.1}}, {"a": {"lr": 0.2}})
    ('a.lr', 0.1, 0.2)
    """
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        if saved.get("class") != current.get("class"):
            return key, saved.get("class"), current.get("class")
        for name in [*current, *(k for k in saved if k not in current)]:
            below = f"{key}.{name}" if key else name
            if difference := first_difference(saved.get(name), current.get(name), below):
                return difference
        return None
    return None if saved == current else (key, saved, current)
