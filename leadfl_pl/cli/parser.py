"""The parser of the command line: YAML without surprises, settings of one class only."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, _typehints, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from leadfl_pl.cli.messages import configuration_error, explain, load_class
from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.rng import MAX_SEED
from leadfl_pl.core.yaml_files import refuse_duplicates

TRACEBACK_VARIABLE = "LEADFL_PL_TRACEBACK"
MODE = "leadfl_pl"  # the name under which jsonargparse knows this parser's YAML


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with an argument in one sentence, without the whole usage.

    A class that takes another's place starts from its own defaults.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "parser_mode": MODE})

    def parse_args(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> Namespace:
        with _separate_settings():
            return super().parse_args(*args, **kwargs)

    def parse_object(self, *args: Any, **kwargs: Any) -> Namespace:
        with _separate_settings():
            config: Namespace = super().parse_object(*args, **kwargs)
            return config

    def validate(self, namespace: Namespace, skip_unset: bool = True, **kwargs: Any) -> None:
        """Also refuses null where the type does not allow it, which jsonargparse lets pass."""
        super().validate(namespace, skip_unset, **kwargs)
        if not self.exit_on_error:  # the settings of a class, all of which are there
            super().validate(namespace, skip_unset=False, **{**kwargs, "skip_required": True})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a nested parser: the outermost one reports
            super().error(message, ex)
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(ex)
        print(f"error: {configuration_error(ex) or self._nearest(message)}", file=sys.stderr)
        self.exit(2)

    def _nearest(self, message: str) -> str:
        """The message as one sentence, with the setting that an unknown one may stand for."""
        sentence = explain(message)
        unknown = re.match(r"(?:--)?([^\s=]+)\S* is no setting$", sentence)
        nearest = unknown and difflib.get_close_matches(unknown[1], set(_settings(self)), n=1)
        return f"{sentence}; did you mean {nearest[0]}?" if nearest else sentence


def _settings(parser: ArgumentParser) -> Iterator[str]:
    """The keys of a parser and of its subcommands."""
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for below in action.choices.values():
                yield from _settings(below)
        yield from (option.lstrip("-") for option in action.option_strings)


def seed(value: object) -> int:
    """The seed that ``value`` writes.

    >>> seed("7")
    7

    Raises:
        ConfigError: it is no whole number, or one that NumPy does not take.
    """
    text = str(value)
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise ConfigError(
            f"seed_everything must be a whole number in 0 .. {MAX_SEED}, "
            f"got seed_everything = {value}"
        )
    return int(text)


def load_yaml(text: str, path: str = "") -> Any:
    """What YAML ``text`` says; ``path`` is the name of the configuration that it is, if it is one.

    >>> load_yaml("{alpha: 0.4}")
    {'alpha': 0.4}

    Raises:
        yaml.YAMLError: no YAML, nothing at all, or a key given twice.
        ConfigError: any of that in a configuration, or no keys in it.
    """
    try:
        if (node := yaml.compose(text, yaml.SafeLoader)) is None:
            raise yaml.YAMLError("line 1: there is nothing in it")
        refuse_duplicates(node)
        content = get_loader("yaml")(text)
    # a list may contain itself, a key be a list, a number have thousands of digits
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        sentence = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            sentence = f"line {error.problem_mark.line + 1}: no YAML, {error.problem}"
        if path:
            raise ConfigError(f"config = {path}, {sentence}") from error
        raise yaml.YAMLError(sentence) from error
    if path and not isinstance(node, yaml.MappingNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "word"
        raise ConfigError(f"config = {path} must have keys such as model, got a {kind}")
    return content


set_loader(MODE, load_yaml, (yaml.YAMLError,))


@contextmanager
def _separate_settings() -> Iterator[None]:
    """Makes jsonargparse drop all settings of a class that another one replaces.

    Its own function, called wherever a class may change, keeps those that the new class has as
    well: an LDP in place of a LeadFL that is ``released`` would be ``released``.
    """
    original = _typehints.discard_init_args_on_class_path_change
    _typehints.discard_init_args_on_class_path_change = _discard_settings
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = original


def _discard_settings(_: object, before: Any, now: Any) -> None:
    if not before or not before.get("class_path") or "init_args" not in before:
        return
    if before["class_path"] == now["class_path"]:
        return
    if load_class(before["class_path"]) is not load_class(now["class_path"]):
        before["init_args"] = Namespace()
