"""An experiment as data: a base config, axes of settings, and seeds."""

from __future__ import annotations

import itertools
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.rng import MAX_SEED
from leadfl_pl.core.yaml_files import read_mapping

Settings = dict[str, Any]  # values by the keys of the command line
KEYS = ("base", "set", "axes", "seeds", "published", "figures")
COSTS = {"seconds a round": "seconds_per_round", "peak memory": "peak_memory_mb"}
FRACTIONS = ("main accuracy", "backdoor average", "backdoor final")  # in 0 .. 1
NUMBERS = (
    *FRACTIONS,
    "backdoor lifespan",
    "recovery half-life",
    "attackers selected",
    *COSTS,
)
COLUMNS = {  # of the tables, beside the axes
    *NUMBERS, "seed", "seeds", "status", "states", "finished", "error", "hash", "commit",
    "command", "round", "burst", "bursts", "backdoor accuracy",
}  # fmt: skip


class Level(NamedTuple):
    """One value of an axis: what it is called, and the settings that it stands for."""

    label: str
    settings: Settings


class Cell(NamedTuple):
    """One run of an experiment."""

    labels: dict[str, str]  # by axis
    settings: Settings
    seed: int
    arguments: list[str]  # of ``leadfl-pl fit``, without the seed

    @property
    def fit(self) -> list[str]:
        """The arguments of ``leadfl-pl``."""
        return ["fit", *self.arguments, f"--seed_everything={self.seed}"]

    @property
    def command(self) -> str:
        """What repeats the run, quoted for a shell."""
        return shlex.join(["leadfl-pl", *self.fit])

    def __str__(self) -> str:
        return ", ".join([*self.labels.values(), f"seed {self.seed}"])


class Experiment(NamedTuple):
    """What a file under ``configs/experiments/`` says.

    ``base`` is the config that every run starts from, ``set`` is set in every run, ``axes`` has a
    list of entries for each axis, and the runs are all combinations of an entry an axis with a
    seed. An entry is a mapping of keys of the command line to values, with a ``label`` if its name
    is not to be made of them; a list of values stands for as many entries, and the key ``config``
    is a config on top of the base. Paths of configs are relative to the file. ``published`` are
    numbers from elsewhere for the table, ``figures`` the kinds of figures of the report.
    """

    name: str
    base: Path
    settings: Settings
    axes: dict[str, list[Level]]
    seeds: list[int]
    published: list[dict[str, Any]]
    figures: list[str] | None

    def cells(self) -> Iterator[Cell]:
        """All runs, seed by seed, so that an experiment that is cut short has every combination."""
        for seed in self.seeds:
            for levels in itertools.product(*self.axes.values()):
                labels = {a: level.label for a, level in zip(self.axes, levels, strict=True)}
                settings = dict(self.settings)
                for level in levels:
                    settings |= level.settings
                yield Cell(labels, settings, seed, self.arguments(settings))

    def each_level(self) -> Iterator[Cell]:
        """Every entry of every axis once, with the first ones of the other axes and seeds."""
        first = [levels[0].label for levels in self.axes.values()]
        for cell in self._replace(seeds=self.seeds[:1]).cells():
            if sum(a != b for a, b in zip(cell.labels.values(), first, strict=True)) <= 1:
                yield cell

    def arguments(self, settings: Settings) -> list[str]:
        """The arguments of ``leadfl-pl fit``, without a seed, for the base with these settings."""
        settings = dict(settings)
        configs = [str(self.base), *filter(None, [settings.pop("config", None)])]
        flags = [*(f"--config={config}" for config in configs), *flags_of(settings)]
        # the runs share the machine already
        return flags if "trainer.devices" in settings else [*flags, "--trainer.devices=1"]


def flags_of(settings: Mapping[str, Any]) -> list[str]:
    """The settings as flags of the command line, a class before the settings below it.

    >>> flags_of({"model.lr": 0.1, "trainer.logger": False, "model.defense": None})
    ['--model.lr=0.1', '--trainer.logger=false', '--model.defense=null']
    >>> flags_of({"model.defense.scale": 1, "model.defense": "LDP"})
    ['--model.defense=LDP', '--model.defense.scale=1']
    """
    keys: list[str] = []
    for key in settings:
        below = (i for i, other in enumerate(keys) if other.startswith(f"{key}."))
        keys.insert(next(below, len(keys)), key)
    return [f"--{key}={_text(settings[key])}" for key in keys]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace("Infinity", ".inf")


def read_experiment(path: Path) -> Experiment:
    """The experiment in a YAML file.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    content = read_mapping(path, "base, axes and seeds")
    if unknown := [key for key in content if key not in KEYS]:
        raise ConfigError(f"{path} must have the keys {', '.join(KEYS)}, got {unknown[0]}")
    base = content.get("base")
    if not isinstance(base, str) or not (path.parent / base).is_file():
        raise ConfigError(f"{path}: base must be a config, seen from that file, got base = {base}")
    axes = content.get("axes", {})
    if not isinstance(axes, dict) or not all(isinstance(v, list) and v for v in axes.values()):
        raise ConfigError(f"{path}: axes must have a list of entries for each axis, got {axes}")
    for key in ("published", "figures"):
        if not isinstance(content.get(key) or [], list):
            raise ConfigError(f"{path}: {key} must be a list, got {key} = {content[key]}")
    settings = content.get("set", {})
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: set must be keys with values, got set = {settings}")
    experiment = Experiment(
        path.stem,
        _shown(path.parent / base),
        _beside(path, settings),
        {str(axis): _levels(path, axis, entries) for axis, entries in axes.items()},
        _seeds(path, content.get("seeds", [0])),
        content.get("published") or [],
        content.get("figures"),
    )
    _check_keys(path, experiment)
    for axis, levels in experiment.axes.items():
        _refuse_twice(path, f"axes.{axis}", [level.label for level in levels])
    return experiment


def _check_keys(path: Path, experiment: Experiment) -> None:
    """Refuses settings that a run would not have as they are written."""
    places: dict[str, list[str]] = {"config": ["set"] * ("config" in experiment.settings)}
    for axis, levels in experiment.axes.items():
        for key in dict.fromkeys(key for level in levels for key in level.settings):
            places.setdefault(key, []).append(f"axes.{axis}")
    for key, where in places.items():
        if len(where) > 1:
            raise ConfigError(f"{path}: {key} must be in one place, got {' and '.join(where)}")
    instead = {"seed_everything": "seeds", "ckpt_path": "trainer.federation.start_from"}
    for key in {*experiment.settings, *places} & set(instead):
        raise ConfigError(f"{path} must have {instead[key]} in place of {key}")


def _seeds(path: Path, seeds: Any) -> list[int]:
    if not isinstance(seeds, list) or not seeds:
        raise ConfigError(f"{path}: seeds must be a list of seeds, got seeds = {seeds}")
    for seed in seeds:
        require_number(str(path), "seeds", seed, least=0, most=MAX_SEED, whole=True)
    _refuse_twice(path, "seeds", seeds)
    return seeds


def _refuse_twice(path: Path, key: str, values: Sequence[Any]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"{path}: {key} must have each value once, got {value} twice")


def _levels(path: Path, axis: str, entries: Sequence[Any]) -> list[Level]:
    levels = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: axes.{axis} must have entries of keys, got {entry}")
        settings = {key: value for key, value in entry.items() if key != "label"}
        lists = {key: value for key, value in settings.items() if isinstance(value, list)}
        if empty := [key for key, value in lists.items() if not value]:
            raise ConfigError(f"{path}: axes.{axis} must have values for {empty[0]}, got none")
        name = entry.get("label")
        if name is None:
            constant = {k: v for k, v in settings.items() if k not in lists}
            name = ", ".join(_label(key, value) for key, value in constant.items())
        for values in itertools.product(*lists.values()):
            chosen = dict(zip(lists, values, strict=True))
            parts = [str(name)] * (name != "") + [_label(*pair) for pair in chosen.items()]
            point = {key: chosen.get(key, value) for key, value in settings.items()}
            levels.append(Level(", ".join(parts) or "default", _beside(path, point)))
    return levels


def _label(key: str, value: Any) -> str:
    """A setting's part of a name: a config's own, or the end of the key with its value.

    >>> _label("model.defense", "../defenses/ldp.yaml"), _label("model.defense.scale", 0.2)
    ('ldp', 'scale=0.2')
    """
    if isinstance(value, str) and value.endswith(".yaml"):
        return Path(value).stem
    return f"{key.rpartition('.')[2]}={value}"


def _beside(path: Path, settings: Mapping[str, Any]) -> Settings:
    """The settings, with the paths of configs beside ``path`` as they are seen from here."""
    seen = {}
    for key, value in settings.items():
        is_path = isinstance(value, str) and value.endswith(".yaml")
        if is_path and not (path.parent / value).is_file():
            raise ConfigError(f"{path}: {key} must be a config, seen from that file, got {value}")
        seen[str(key)] = str(_shown(path.parent / value)) if is_path else value
    return seen


def _shown(path: Path) -> Path:
    """The path from here if it is below, else as it is: commands are to work for others as well."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return path if relative.startswith(os.pardir) else Path(relative)


def check_axes(path: Path, axes: Iterable[str]) -> None:
    """Raises :class:`ConfigError` for an axis that is called like another column of a table."""
    for axis in axes:
        if axis in COLUMNS:
            raise ConfigError(f"{path}: axes must not be called like columns of tables, got {axis}")
