"""The split without any skew."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.core.rng import generator
from leadfl_pl.data.splits.base import Split, check_split


class IID(Split):
    """A uniformly random split into K parts whose sizes differ by at most one.

    >>> parts = IID()(torch.zeros(10), num_clients=3, seed=0)
    >>> [len(p) for p in parts], sorted(torch.cat(parts).tolist()) == list(range(10))
    ([4, 3, 3], True)
    """

    def __call__(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        order = torch.randperm(len(labels), generator=generator(seed, "split"))
        parts = list(order.tensor_split(num_clients))
        return check_split(self, parts, num_clients, len(labels))
