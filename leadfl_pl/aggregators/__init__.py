"""Server-side rules: (n, d) updates to one (d,) update. None of them knows who is malicious."""

from leadfl_pl.aggregators.base import Aggregated, Aggregator, FedAvg
from leadfl_pl.aggregators.bulyan import Bulyan, ReleasedBulyan
from leadfl_pl.aggregators.centered_clipping import CenteredClipping
from leadfl_pl.aggregators.crfl import CRFL
from leadfl_pl.aggregators.dnc import DnC
from leadfl_pl.aggregators.flame import FLAME
from leadfl_pl.aggregators.fltrust import FLTrust
from leadfl_pl.aggregators.foolsgold import FoolsGold
from leadfl_pl.aggregators.krum import Krum, MultiKrum
from leadfl_pl.aggregators.median import Median
from leadfl_pl.aggregators.nearest_neighbor_mixing import NearestNeighborMixing
from leadfl_pl.aggregators.norm_clipping import NormClipping
from leadfl_pl.aggregators.pre_aggregation import PreAggregation, PreStep
from leadfl_pl.aggregators.rfa import RFA
from leadfl_pl.aggregators.robust_lr import RobustLR
from leadfl_pl.aggregators.server_decay import ServerDecay
from leadfl_pl.aggregators.sparsefed import SparseFed
from leadfl_pl.aggregators.trimmed_mean import TrimmedMean
from leadfl_pl.aggregators.validation import RejectedUpdate, stack_states
from leadfl_pl.aggregators.weak_dp import WeakDP

__all__ = [
    "CRFL",
    "FLAME",
    "RFA",
    "Aggregated",
    "Aggregator",
    "Bulyan",
    "CenteredClipping",
    "DnC",
    "FLTrust",
    "FedAvg",
    "FoolsGold",
    "Krum",
    "Median",
    "MultiKrum",
    "NearestNeighborMixing",
    "NormClipping",
    "PreAggregation",
    "PreStep",
    "RejectedUpdate",
    "ReleasedBulyan",
    "RobustLR",
    "ServerDecay",
    "SparseFed",
    "TrimmedMean",
    "WeakDP",
    "stack_states",
]
