"""Vectorised execution: the clients of a round train at once, on stacked parameters."""

from leadfl_pl.federation.vectorised.choice import local_training
from leadfl_pl.federation.vectorised.training import VectorisedTraining

__all__ = ["VectorisedTraining", "local_training"]
