"""Mappings in YAML files, without surprises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from leadfl_pl.core.errors import ConfigError


def read_mapping(path: Path, keys: str) -> dict[str, Any]:
    """The mapping in a YAML file; ``keys`` says in a message what it should have.

    Raises:
        ConfigError: it cannot be read, is no mapping, or has a key twice.
    """
    try:
        text = path.read_text()
        if (node := yaml.compose(text, yaml.SafeLoader)) is not None:
            refuse_duplicates(node)
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # {{ }}, *itself
        raise ConfigError(f"{path} must be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        got = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{path} must be a mapping with {keys}, got {got}")
    return content


def refuse_duplicates(node: yaml.Node) -> None:
    """Raises :class:`yaml.YAMLError` for a key given twice, which YAML's own loader overlooks."""
    children = [] if isinstance(node, yaml.ScalarNode) else list(node.value)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key {key.value} is given twice")
            seen.add(key.value)
        children = [value for _, value in node.value]
    for child in children:
        refuse_duplicates(child)
