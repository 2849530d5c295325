"""Splits of a training set over clients: pure functions of (labels, number of clients, seed)."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.rng import generator
from leadfl_pl.types import ConfigError


class Split:
    """Assigns every training example to exactly one client."""

    def __call__(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        """Indices of the examples of each client.

        Args:
            labels: classes (N,) of the training set.
            num_clients: K.
            seed: of the experiment; the same seed gives the same split.

        Returns:
            K index tensors that together hold 0 .. N - 1 once each, none of them empty.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__()")


class IID(Split):
    """A uniformly random split into K parts whose sizes differ by at most one.

    >>> parts = IID()(torch.zeros(10), num_clients=3, seed=0)
    >>> [len(p) for p in parts], sorted(torch.cat(parts).tolist()) == list(range(10))
    ([4, 3, 3], True)
    """

    def __call__(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        order = torch.randperm(len(labels), generator=generator(seed, "split"))
        return check_split(list(order.tensor_split(num_clients)), len(labels))


def check_split(parts: list[Tensor], num_examples: int) -> list[Tensor]:
    """Returns ``parts``, or raises :class:`ConfigError` if a client got no example."""
    for client, part in enumerate(parts):
        if len(part) == 0:
            raise ConfigError(
                f"trainer.federation.num_clients = {len(parts)} leaves client {client} without "
                f"any of the {num_examples} training examples; use at most {num_examples} "
                "clients, or a split that gives each of them at least one"
            )
    return parts
