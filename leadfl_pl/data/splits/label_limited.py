"""Label skew with a fixed number of classes a client."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.rng import generator
from leadfl_pl.data.splits.base import Split


def choose_classes(num_clients: int, num_classes: int, c: int, rng: torch.Generator) -> Tensor:
    """Which client owns which class: (K, C) bool with c True in each row.

    In random order, each client takes the c classes with the fewest owners so far, ties at
    random. So the classes' numbers of owners differ by at most one.

    >>> owns = choose_classes(5, 4, c=2, rng=torch.Generator().manual_seed(0))
    >>> owns.sum(dim=1), owns.sum(dim=0).sort().values
    (tensor([2, 2, 2, 2, 2]), tensor([2, 2, 3, 3]))
    """
    owns = torch.zeros(num_clients, num_classes, dtype=torch.bool)
    for client in torch.randperm(num_clients, generator=rng):
        crowding = owns.sum(dim=0) + torch.rand(num_classes, generator=rng, dtype=torch.float64)
        owns[client, crowding.argsort()[:c]] = True
    return owns


class LabelLimited(Split):
    """Every client has examples of c classes; a class is split equally over those that own it.

    In random order, each client takes the c classes with the fewest owners so far, ties at
    random. If a class has fewer examples than owners, some of these have fewer than c classes.

    Args:
        labels_per_client: c, >= 1.

    Raises:
        ConfigError: c < 1; when called, if there are fewer than c classes, if K c clients' choices
            cannot own every class, or if a client got no example.

    >>> labels = torch.arange(40) % 4
    >>> parts = LabelLimited(2)(labels, num_clients=4, seed=0)
    >>> [len(labels[p].unique()) for p in parts], [len(p) for p in parts]
    ([2, 2, 2, 2], [10, 10, 10, 10])

    References:
        Li, Diao, Chen, He 2022, see :class:`Dirichlet` ("#C = k").

    Differences:
        1. NIID-Bench gives client k the class k mod C and draws its other classes uniformly, so a
           class may have many more owners than another; here the numbers differ by at most one.
    """

    def __init__(self, labels_per_client: int = 2) -> None:
        require_number("LabelLimited", "labels_per_client", labels_per_client, least=1, whole=True)
        self.labels_per_client = labels_per_client

    def __call__(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        classes = labels.unique()
        self._check(num_clients, len(classes))
        rng = generator(seed, "split")
        owns = choose_classes(num_clients, len(classes), self.labels_per_client, rng)
        order = torch.randperm(len(labels), generator=rng)
        shares: list[list[Tensor]] = [[] for _ in range(num_clients)]
        for label, owned in zip(classes, owns.T, strict=True):
            owners = owned.nonzero().flatten()
            owners = owners[torch.randperm(len(owners), generator=rng)]
            examples = order[labels[order] == label].tensor_split(len(owners))
            for owner, share in zip(owners.tolist(), examples, strict=True):
                shares[owner].append(share)
        parts = [torch.cat(share) for share in shares]
        for client, part in enumerate(parts):
            if len(part) == 0:
                raise self._empty(client, labels, classes, owns)
        return parts

    def _empty(self, client: int, labels: Tensor, classes: Tensor, owns: Tensor) -> ConfigError:
        examples = [
            f"{(labels == classes[j]).sum()} of class {classes[j]} for {owns[:, j].sum()} clients"
            for j in owns[client].nonzero().flatten()
        ]
        return ConfigError(
            f"LabelLimited: labels_per_client = {self.labels_per_client} leaves client {client} of "
            f"trainer.federation.num_clients = {len(owns)} without an example: there are "
            f"{', '.join(examples)}; use fewer clients or more labels a client"
        )

    def _check(self, num_clients: int, num_classes: int) -> None:
        c = self.labels_per_client
        if c > num_classes:
            raise ConfigError(
                f"LabelLimited: labels_per_client must be <= {num_classes}, the number of classes "
                f"in the training set, got labels_per_client = {c}"
            )
        if num_clients * c < num_classes:
            raise ConfigError(
                f"LabelLimited: labels_per_client = {c} for trainer.federation.num_clients = "
                f"{num_clients} leaves classes without a client: {num_clients} x {c} must be >= "
                f"{num_classes}, the number of classes in the training set"
            )
