"""The API pages: one a package of ``leadfl_pl``, with all of its public names."""

from __future__ import annotations

import importlib
import inspect
import sys

import leadfl_pl

INTERNAL = (  # what docstrings of public names refer to
    "leadfl_pl.aggregators.rfa.minimise",
    "leadfl_pl.attacks.alie.largest_z",
    "leadfl_pl.attacks.base.CraftedUpdates",
    "leadfl_pl.attacks.data_poisoning.image_hash",
    "leadfl_pl.attacks.fang.largest_lambda",
    "leadfl_pl.core.vector",
    "leadfl_pl.core.vector.ModelVector",
    "leadfl_pl.data.base.check_sets",
    "leadfl_pl.data.torchvision_sets.read_image",
    "leadfl_pl.data.torchvision_sets.read_images",
    "leadfl_pl.diagnostics.curvature.hutchinson_diagonal",
    "leadfl_pl.diagnostics.linearised.Propagation",
    "leadfl_pl.diagnostics.recovery_certificate.rounding",
    "leadfl_pl.federation.server.RoundResult",
    "leadfl_pl.metrics.after_bursts.AfterBursts",
    "leadfl_pl.metrics.attacker_detection.Detection",
    "leadfl_pl.metrics.backdoor_lifespan.Lifespan",
    "leadfl_pl.metrics.backdoor_lifespan.MeanLifespan",
    "leadfl_pl.metrics.backdoor_lifespan.lifespans",
    "leadfl_pl.metrics.backdoor_lifespan.restricted_mean",
    "leadfl_pl.metrics.recovery_half_life.half_life",
    "leadfl_pl.models.networks.Normalize",
    "leadfl_pl.models.networks.norm_layer",
    "leadfl_pl.records.checkpoints.read_checkpoint",
    "leadfl_pl.trainer.trainer.DiskFullError",
)

PLUGINS = {"flower": "leadfl_pl.interop.flower", "nvflare": "leadfl_pl.interop.nvflare"}


def package_of(name: str) -> str:
    """The package that a name of ``leadfl_pl`` comes from, ``leadfl_pl`` itself for a constant.

    >>> package_of("Krum"), package_of("__version__")
    ('aggregators', 'leadfl_pl')
    """
    module: str = getattr(getattr(leadfl_pl, name), "__module__", "leadfl_pl")
    return module.split(".")[1] if "." in module else "leadfl_pl"


def directive(full_name: str) -> str:
    """The reStructuredText that documents a class, a function or a constant."""
    if full_name in sys.modules:
        return f".. automodule:: {full_name}\n"
    module, _, name = full_name.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        return f".. autoclass:: {full_name}\n   :members:\n   :show-inheritance:\n"
    if inspect.isfunction(value):
        return f".. autofunction:: {full_name}\n"
    return f".. py:data:: {full_name}\n   :type: {type(value).__name__}\n"


def title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def pages() -> dict[str, str]:
    """The reStructuredText of each page, by its name without ending."""
    names: dict[str, list[str]] = {}
    for name in sorted(leadfl_pl.__all__, key=str.lower):
        names.setdefault(package_of(name), []).append(f"leadfl_pl.{name}")
    for full_name in INTERNAL:
        names.setdefault(full_name.split(".")[1], []).append(full_name)
    constants = names.pop("leadfl_pl")
    written = {}
    for package, of_package in sorted(names.items()):
        parts = [title(package), f".. automodule:: leadfl_pl.{package}\n"]
        written[package] = "\n".join([*parts, *map(directive, of_package)])
    for name, module in PLUGINS.items():
        written[name] = title(f"interop.{name}") + f"\n.. automodule:: {module}\n   :members:\n"
    index = [
        title("API"),
        "Everything that ``import leadfl_pl`` gives, by package, and the plug-ins.\n",
    ]
    index += [
        *map(directive, constants),
        ".. toctree::\n   :maxdepth: 2\n",
        *(f"   {name}" for name in written),
    ]
    return written | {"index": "\n".join(index) + "\n"}
