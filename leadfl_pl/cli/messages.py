"""What jsonargparse says of a wrong argument, as one sentence."""

from __future__ import annotations

import inspect
import os
import re
import traceback
from importlib import import_module
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

import leadfl_pl
from leadfl_pl.aggregators import Aggregator
from leadfl_pl.attacks import Attack
from leadfl_pl.core.errors import ConfigError, where
from leadfl_pl.data import FederatedDataModule
from leadfl_pl.data.splits import Split
from leadfl_pl.defenses import ClientDefense
from leadfl_pl.federation.client import FederatedClient
from leadfl_pl.schedules import Schedule
from leadfl_pl.trainer.trainer import FederatedTrainer

SEAMS: dict[str, type] = {
    "defense": ClientDefense,
    "aggregator": Aggregator,
    "attack": Attack,
    "schedule": Schedule,
    "split": Split,
    "data": FederatedDataModule,
    "model": FederatedClient,
}
COPIED = (
    "no file that can be read; a path in a config is relative to the config's folder (leadfl-pl "
    "init or --print_config writes a config without relative paths)"
)


def configuration_error(error: BaseException | None) -> BaseException | None:
    """The wrong setting that led to ``error``, if one did."""
    while error is not None:
        if isinstance(error, (ConfigError, MisconfigurationException)):
            return error
        error = error.__cause__ or error.__context__
    return None


def not_made(error: BaseException) -> str:
    """Which object could not be made of which settings, and what its ``__init__`` said."""
    while error.__cause__ is not None:  # jsonargparse says what it tried besides
        error = error.__cause__
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals:
            owner = type(frame.f_locals["self"])
            given = {k: frame.f_locals.get(k) for k in inspect.signature(owner).parameters}
            plain = {k: v for k, v in given.items() if isinstance(v, (str, float, int, list))}
            settings = ", ".join(f"{k} = {v}" for k, v in plain.items())
            return f"{owner.__name__} cannot be made of {settings or 'no settings'}: {error!r}"
    return f"the configuration cannot be used: {error!r}"


def not_started(error: BaseException) -> ConfigError | None:
    """What kept a run from its first round; None if ``error`` arose later."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        trainer = frame.f_locals.get("self")
        begun = isinstance(trainer, FederatedTrainer) and trainer.fit_loop.rounds_done > 0
        if begun or frame.f_code.co_name == "run_round":
            return None
    return ConfigError(f"the run cannot start: {where(error)}")


def load_class(class_path: str) -> Any:
    """What ``module.Name`` names."""
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def explain(message: str) -> str:
    """One sentence from jsonargparse's tree of everything that it tried.

    >>> explain('Parser key "f": Expected a int. Got value: 4.5')
    'f must be int, got 4.5'
    """
    # what was tried with a file's content names its keys in full
    message = re.sub(r"[\s\S]*Unable to load config .+\n\s+- (?=Parser key)", "", message)
    key = ".".join(re.findall(r'[Pp]arser key "([^"]+)"', message))
    owners = re.findall(r"given class_path '([^']+)'", message)
    innermost = re.split(r'[Pp]arser key "[^"]+"', message)[-1]
    if match := re.search(r"(?:Option|Key|option) '([^']+)' is not|accept option '(.+)'", message):
        name = match[1] or match[2]
        where = f"{key}.{name}" if key else name
        return f"{where} is no setting" + (f" of {_settings(owners[-1])}" if owners else "")
    if match := re.search(r"arguments are required: (.+)", innermost):
        names = re.sub(r"\b(fit|validate|test)\.", "", match[1]).split(", ")
        missing = ", ".join(f"{key}.{name}" if key else name for name in names)
        owner = f": {owners[-1].rpartition('.')[2]} has no default for it" if owners else ""
        return f"{missing} must be given{owner}"
    if match := re.search(
        r"sub-config file (.+): (line .+)|Unable to load config '(.+)'\s+- (line .+)", innermost
    ):
        return f"{key} = {match[1] or match[3]}, {match[2] or match[4]}"
    if match := re.search(
        r"(?:dot import path string|Unexpected import path format): (.*)|"
        r"Import path (\S+) does not|"
        r"class_path '(.+)':\s+(?:No module|module )|Not a valid subclass of .+ Got value: (.+)|"
        r"Not a valid subclass of [\s\S]+?Given value: (.+)|Unable to load config [\"'](.+)[\"']",
        innermost,
    ):
        return _no_class(key, next((group for group in match.groups() if group), ""))
    if match := re.search(r"Config file loop detected: (.+?) -> ", innermost):
        return _no_class(key, match[1])
    if match := re.search(r"Key must be a string, got: (.+)\.", innermost):
        return f"{key or 'config'} must have keys that are words, got {match[1]}"
    if match := re.search(r"Unexpected config: (.+)", innermost):
        return f"config must be a file with keys such as model, got {match[1]}"
    if "codec can't decode" in innermost:
        return f"{key} must be a file of UTF-8 text"
    if match := re.search(r"Multiple subclasses with name (\w+)\. (.+)\.", innermost):
        return f"{key} = {match[1]} is the name of several classes: {match[2]}"
    if match := re.search(r"Subtypes: \[(.+)\][\s\S]*?Given value: ?(.*)", innermost):
        kinds = re.findall(r"typing\.Literal\[.+?\]|<class '.+?'>|[\w.]+(?:\[.+?\])?", match[1])
        return _wrong_type(key, kinds, match[2])
    if match := re.search(r"Expected an? (.+)\. Got value: (.*)", innermost):
        return _wrong_type(key, [match[1]], match[2])
    if match := re.search(r"((?:File|Path) (?:does not|is not) [\w ]+): '(.+)'", innermost):
        return f"{key} = {match[2]}: {match[1].lower()}"
    if match := re.search(r"unrecognized arguments: (.+)", message):
        return f"{match[1]} is no setting"
    if match := re.search(r"argument (\S+): expected one argument", message):
        return f"{match[1]}, or a setting below it, must have a value"
    return " ".join((f"{key}{innermost}" if key else message).split())


def _import_error(class_path: str) -> str | None:
    """Why a class that is there cannot be used: its module raises, or it is abstract."""
    module, _, name = class_path.rpartition(".")
    if not re.fullmatch(r"\w+(\.\w+)*", module):  # no class path but a file's, or no path at all
        return None
    try:
        cls = load_class(class_path)
    except ModuleNotFoundError as error:
        return None if f"{module}.".startswith(f"{error.name}.") else f"{error!r}"
    except (AttributeError, ImportError, ValueError):
        return None
    except Exception as error:
        return f"{error!r}"
    if inspect.isabstract(cls):
        return f"{name} must define {', '.join(sorted(cls.__abstractmethods__))}"
    return None


def _no_class(key: str, value: str) -> str:
    if problem := _import_error(value):
        return f"{key} = {value} cannot be used: {problem}"
    if os.path.isfile(value):
        return f"{key} = {value} must be a file with settings, a line each"
    if re.search(r"\.(ya?ml|json)$|/", value):
        return f"{key} = {value}: {COPIED}"
    if value[:1] in ("[", "{"):
        return f"{key} must be a class, or class_path and init_args, got {value}"
    if key in ("trainer", "trainer.federation"):
        return f"{key} must be settings or a file with them, got {_value(value)}"
    seam = None if key == "model.model" else SEAMS.get(key.rpartition(".")[2])
    known = f"; known are {', '.join(_known(seam))}" if seam else ""
    missing = _missing(value) or "neither such a class nor a file of that name"
    return f"{key} = {_value(value)}: {missing}{known}"


def _missing(class_path: str) -> str | None:
    """Which part of a class path is not there; None if all is, or it is a name only."""
    module, _, name = class_path.rpartition(".")
    if not re.fullmatch(r"\w+(\.\w+)*", module):
        return None
    try:
        load_class(class_path)
    except ImportError:
        return f"there is no module {module}, here or installed"
    except AttributeError:
        return f"the module {module} has no {name}"
    return None


def _wrong_type(key: str, kinds: list[str], value: str) -> str:
    if problem := _import_error(value):
        return f"{key} = {value} cannot be used: {problem}"
    names = list(map(_type_name, kinds))
    if value and value.rpartition(".")[2] in names:
        return f"{key} must be a subclass of {value}, got the abstract {value} itself"
    wanted = " or ".join(names)
    if "float" in wanted and value.lower().lstrip("+-") in ("nan", "inf"):
        wanted = wanted.replace("float", "a finite number")
    return f"{key} must be {wanted}, got {_value(value)}"


def _value(text: str) -> str:
    return "null" if text == "None" else text or "nothing"


def _type_name(kind: str) -> str:
    name = re.sub(r"[\w.]+\.(\w+)", r"\1", re.sub(r"<class '(.+)'>", r"\1", kind))
    name = re.sub(r"^(Sequence|Iterable|tuple)\b", "list", name.replace("NoneType", "null"))
    return re.sub(r"Literal\[(.+)\]", r"one of \1", name)


def _settings(class_path: str) -> str:
    parameters = inspect.signature(load_class(class_path)).parameters
    return f"{class_path.rpartition('.')[2]}, which has {', '.join(parameters) or 'none'}"


def _known(base: type) -> list[str]:
    public = [getattr(leadfl_pl, name) for name in leadfl_pl.__all__]
    classes = [c for c in public if isinstance(c, type) and issubclass(c, base)]
    # of most seams the base class does nothing by itself
    useful = [c for c in classes if c is not base or c is FederatedClient]
    return sorted(c.__name__ for c in useful if not inspect.isabstract(c))
