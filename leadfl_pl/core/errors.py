"""Settings that cannot work are one sentence: the key, its value, and what would be right."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A setting that cannot work. The message names the key, its value and what would be right."""


def require_choice(owner: str, key: str, value: str, choices: Sequence[str]) -> None:
    """Raises :class:`ConfigError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(
            f"{owner}: {key} must be one of {', '.join(choices)}, got {key} = {value}"
        )
