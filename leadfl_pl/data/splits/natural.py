"""The split that the data came with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.data.splits.base import Split
from leadfl_pl.data.splits.iid import IID


class Natural(Split):
    """What belongs together stays together: all examples of one writer, hospital or phone.

    The G groups are dealt at random over the K clients, so that their numbers of groups differ by
    at most one. With K = G every group is a client.

    Args:
        groups: the group of each training example, N values of any one type.

    Raises:
        ConfigError: an example without a group; when called, for another number of examples, or
            for fewer groups than clients.

    >>> split = Natural(["Ann", "Bob", "Ann", "Cem"])
    >>> sorted(part.tolist() for part in split(torch.zeros(4), num_clients=3, seed=0))
    [[0, 2], [1], [3]]

    References:
        Caldas, Duddu, Wu, Li, Konecny, McMahan, Smith, Talwalkar. LEAF: A Benchmark for Federated
        Settings. arXiv:1812.01097, 2018 (FEMNIST by its writers).
    """

    def __init__(self, groups: Sequence[Any]) -> None:
        numbers: dict[Any, int] = {}
        codes = []
        for i, group in enumerate(np.asarray(groups).tolist()):
            if group is None or group != group:  # NaN
                raise ConfigError(
                    f"Natural.groups must name a group for every example, got {group} for "
                    f"example {i}"
                )
            codes.append(numbers.setdefault(group, len(numbers)))
        self.groups = torch.tensor(codes)

    def __call__(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        if len(labels) != len(self.groups):
            raise ConfigError(
                f"Natural.groups must name the groups of {len(labels)} training examples, got "
                f"{len(self.groups)}"
            )
        names = self.groups.unique()  # 0 .. G - 1
        if num_clients > len(names):
            raise ConfigError(
                f"Natural: trainer.federation.num_clients must be at most {len(names)}, the "
                f"number of groups, got {num_clients}"
            )
        owner = torch.empty_like(names)
        dealt = IID()(names, num_clients, seed)
        for client, groups in enumerate(dealt):
            owner[groups] = client
        owners = owner[self.groups]
        order = owners.argsort(stable=True)
        return list(order.split(owners.bincount(minlength=num_clients).tolist()))
