"""How a training set is split over the clients: pure functions of (labels, clients, seed)."""

from leadfl_pl.data.splits.base import Split, check_split, label_counts, summary
from leadfl_pl.data.splits.dirichlet import Dirichlet
from leadfl_pl.data.splits.iid import IID
from leadfl_pl.data.splits.label_limited import LabelLimited
from leadfl_pl.data.splits.natural import Natural
from leadfl_pl.data.splits.quantity_skew import QuantitySkew
from leadfl_pl.data.splits.shards import Shards

__all__ = [
    "IID",
    "Dirichlet",
    "LabelLimited",
    "Natural",
    "QuantitySkew",
    "Shards",
    "Split",
    "check_split",
    "label_counts",
    "summary",
]
