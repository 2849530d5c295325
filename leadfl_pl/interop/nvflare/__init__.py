"""NVIDIA FLARE: rules as a ``ModelAggregator``, defenses as a callback of a Lightning Trainer."""

try:
    import nvflare.client.lightning  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "leadfl_pl.interop.nvflare needs NVIDIA FLARE: pip install 'leadfl_pl[nvflare]'"
    ) from error

from leadfl_pl.interop.nvflare.aggregator import RobustAggregator
from leadfl_pl.interop.nvflare.callback import ClientDefenseCallback

__all__ = ["ClientDefenseCallback", "RobustAggregator"]
