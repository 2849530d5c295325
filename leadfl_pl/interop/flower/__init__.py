"""Flower: defenses as a mod of a ``ClientApp``, rules as a strategy of a ``ServerApp``."""

try:
    import flwr.serverapp  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "leadfl_pl.interop.flower needs Flower: pip install 'leadfl_pl[flower]'"
    ) from error

from leadfl_pl.interop.flower.client_mod import client_defense_mod
from leadfl_pl.interop.flower.strategy import RobustStrategy

__all__ = ["RobustStrategy", "client_defense_mod"]
