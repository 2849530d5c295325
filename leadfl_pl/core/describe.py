"""Settings as plain data, so that two runs can be compared and a record can be read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

SHORT = 64  # entries up to which a tensor is spelled out
MODULE = frozenset(vars(nn.Module()))  # what PyTorch itself keeps in a module


def describe(value: Any, within: tuple[int, ...] = (), private: bool = False) -> Any:
    """A setting as numbers, strings, lists and dicts; equal settings give equal descriptions.

    An object is its class and its public attributes, a module also its children and the buffers
    that are no part of its state; trained numbers are left out, and of a data module who runs it
    and in which folder its files are. What is long is its hash.

    Args:
        value: anything.
        within: ids of the objects that it is a part of; one of them again is its class alone.
        private: describe private attributes as well.

    >>> describe((3, 23)), describe(float("nan"))
    ([3, 23], 'nan')
    >>> describe(nn.Dropout(0.2))
    {'class': 'torch.nn.modules.dropout.Dropout', 'p': 0.2, 'inplace': False}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, partial):
        value = [value.func, value.args, value.keywords]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # NaN is not equal to itself
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item, within, private) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((describe(item, within, private) for item in value), key=str)
    if isinstance(value, (list, tuple, range)):
        items = [describe(item, within, private) for item in value]
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
    settings = {k: v for k, v in vars(value).items() if private or not k.startswith("_")}
    if isinstance(value, LightningDataModule):
        settings = {k: v for k, v in settings.items() if k not in ("trainer", "data_dir", "_sets")}
    if isinstance(value, nn.Module):
        settings = {k: v for k, v in settings.items() if k not in MODULE}
        settings |= dict(value.named_children())
        state = value.state_dict(keep_vars=True)
        settings |= {k: b for k, b in value.named_buffers(recurse=False) if k not in state}
    name = callable_name(type(value))
    if id(value) in within:
        return name
    return {"class": name} | describe(settings, (*within, id(value)), private)


def callable_name(value: Any) -> str | None:
    """The name of a function or a class; None for anything else."""
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else None


@contextmanager
def remembers_only_in(where: str, owner: object) -> Iterator[None]:
    """Warns if an attribute of ``owner`` has changed at the end: a checkpoint will not have it.

    Args:
        where: its memory is to be, for the message.
        owner: any object.
    """
    before = describe(owner, private=True)
    yield
    if difference := first_difference(before, describe(owner, private=True)):
        rank_zero_warn(
            f"{type(owner).__name__} changes its {difference[0]}, which is not in {where}: a run "
            "that goes on from a checkpoint starts without it"
        )


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
