"""Settings as plain data."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def describe(value: Any) -> Any:
    """A setting as plain data: an object by its class and its own plain settings."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"[{', '.join(sorted(str(describe(v)) for v in value))}]"
    own = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    own |= getattr(value, "_modules", {})  # a module's children
    plain = {k: describe(v) for k, v in own.items() if not isinstance(v, Tensor)}
    return f"{type(value).__name__}({', '.join(f'{k}={v}' for k, v in plain.items())})"
