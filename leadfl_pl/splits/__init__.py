"""How a training set is split over the clients: pure functions of (labels, clients, seed)."""

from leadfl_pl.splits.base import Split, check_split, label_counts, summary
from leadfl_pl.splits.dirichlet import Dirichlet
from leadfl_pl.splits.iid import IID
from leadfl_pl.splits.label_limited import LabelLimited
from leadfl_pl.splits.quantity_skew import QuantitySkew
from leadfl_pl.splits.shards import Shards

__all__ = [
    "IID",
    "Dirichlet",
    "LabelLimited",
    "QuantitySkew",
    "Shards",
    "Split",
    "check_split",
    "label_counts",
    "summary",
]
