"""The first label skew of federated learning: shards of the sorted training set."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.rng import generator
from leadfl_pl.data.splits.base import Split


class Shards(Split):
    """The examples sorted by label, cut into K s shards, s of them for each client.

    The shards' sizes differ by at most one. Two shards may be of one class, and a shard may reach
    over the border between two.

    Args:
        shards_per_client: s, >= 1.

    Raises:
        ConfigError: s < 1; when called, if there are fewer examples than shards.

    >>> labels = torch.arange(12) // 3
    >>> [len(labels[p].unique()) for p in Shards(1)(labels, num_clients=4, seed=0)]
    [1, 1, 1, 1]

    References:
        McMahan, Moore, Ramage, Hampson, Agüera y Arcas. Communication-Efficient Learning of Deep
        Networks from Decentralized Data. AISTATS 2017 (section 3: 200 shards, 2 a client).
    """

    def __init__(self, shards_per_client: int = 2) -> None:
        require_number("Shards", "shards_per_client", shards_per_client, least=1, whole=True)
        self.shards_per_client = shards_per_client

    def __call__(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        count = num_clients * self.shards_per_client
        if count > len(labels):
            raise ConfigError(
                f"Shards: shards_per_client = {self.shards_per_client} for "
                f"trainer.federation.num_clients = {num_clients} makes {count} shards of "
                f"{len(labels)} training examples; use fewer shards or fewer clients"
            )
        rng = generator(seed, "split")
        order = torch.randperm(len(labels), generator=rng)
        shards = order[labels[order].argsort(stable=True)].tensor_split(count)
        chosen = torch.randperm(count, generator=rng).view(num_clients, -1)
        return [torch.cat([shards[i] for i in numbers]) for numbers in chosen.tolist()]
