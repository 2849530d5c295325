"""Vectorised execution: the clients of a round train at once, on stacked parameters."""

from leadfl_pl.federation.vectorised.choice import choose_clients
from leadfl_pl.federation.vectorised.training import VectorisedClients

__all__ = ["VectorisedClients", "choose_clients"]
