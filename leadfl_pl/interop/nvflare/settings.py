"""An object as its class and arguments, from which another process builds it again."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import numpy as np
from torch import nn

from leadfl_pl.aggregators import Aggregator
from leadfl_pl.core.describe import describe
from leadfl_pl.core.errors import ConfigError


def settings_of(rule: Aggregator) -> dict[str, Any]:
    """A rule as ``class_path`` and ``init_args``.

    >>> from leadfl_pl import Krum, ServerDecay
    >>> settings_of(ServerDecay(Krum(f=1), half_life=4.0))["init_args"]["rule"]
    {'class_path': 'leadfl_pl.aggregators.krum.Krum', 'init_args': {'f': 1}}

    Raises:
        ConfigError: the rule that these settings give is another one.
    """
    settings: dict[str, Any] = as_settings(rule)
    try:
        again = describe(from_settings(settings))
    except Exception as error:
        again = str(error)
    if again != describe(rule) or type(rule).__module__ == "__main__":
        raise ConfigError(
            "RobustAggregator: rule must be of a class in a module that a server can import, and "
            "keep its arguments as attributes of their names, to be built again there, got "
            f"{type(rule).__name__}"
        )
    return settings


def as_settings(value: Any) -> Any:
    if isinstance(value, (nn.ModuleList, list, tuple)):
        return [as_settings(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if not hasattr(value, "__dict__"):  # a number, a string
        return value
    kind = type(value)
    names = [name for name in inspect.signature(kind).parameters if hasattr(value, name)]
    return {
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "init_args": {name: as_settings(getattr(value, name)) for name in names},
    }


def from_settings(settings: Any) -> Any:
    """What has these settings."""
    if isinstance(settings, list):
        return [from_settings(item) for item in settings]
    if not isinstance(settings, dict):
        return settings
    module, _, name = settings["class_path"].rpartition(".")
    arguments = {key: from_settings(value) for key, value in settings["init_args"].items()}
    return getattr(import_module(module), name)(**arguments)
