"""Server-side rules: (n, d) updates to one (d,) update. None of them knows who is malicious."""

from leadfl_pl.aggregators.base import Aggregator, FedAvg
from leadfl_pl.aggregators.bulyan import Bulyan, ReleasedBulyan
from leadfl_pl.aggregators.krum import Krum, MultiKrum

__all__ = ["Aggregator", "Bulyan", "FedAvg", "Krum", "MultiKrum", "ReleasedBulyan"]
