"""FLAME: cluster by direction, clip to the median norm, add a little noise."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import Aggregated, Aggregator
from leadfl_pl.core.distances import gram
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.values import ServerContext


def main_cluster(distances: Tensor) -> Tensor:
    """Indices (m,) of HDBSCAN's cluster of more than half of the n points.

    All of them if there is no such cluster.

    Args:
        distances: (n, n), n >= 2.
    """
    from sklearn.cluster import HDBSCAN  # slow to import

    n = len(distances)
    clustering = HDBSCAN(
        min_cluster_size=n // 2 + 1,
        min_samples=1,
        metric="precomputed",
        allow_single_cluster=True,
        copy=True,
    )
    labels = torch.from_numpy(clustering.fit(distances.cpu().numpy()).labels_).to(distances.device)
    inside = labels == 0  # larger than half, so there is no second one
    return (inside if bool(inside.any()) else ~inside).nonzero().squeeze(1)


class FLAME(Aggregator):
    r"""FLAME: the clipped mean of the main cluster of directions, plus noise.

    HDBSCAN on cosine distances, with clusters of at least :math:`\lfloor n/2 \rfloor + 1`; each
    admitted update is clipped to S, the median norm of *all* updates; to the mean of those
    :math:`\mathcal N(0, (\lambda S)^2)` is added.

    >>> updates = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-9.0, 9.0]])
    >>> FLAME(noise=0.0).select(updates)
    tensor([0, 1, 2])

    Args:
        noise: lambda, >= 0.

    Raises:
        ConfigError: noise < 0, fewer than 2 updates.

    References:
        Nguyen, Rieger, Chen, Yalame, et al. FLAME: Taming Backdoors in Federated Learning. USENIX
        Security 2022.

    Differences:
        1. The paper clusters the clients' *models*; here it is their updates, as for every rule of
           this package.
        2. The paper does not say what follows if no cluster is large enough: all are admitted.
    """

    def __init__(self, noise: float = 0.001) -> None:
        super().__init__()
        require_number("FLAME", "noise", noise, least=0)
        self.noise = noise

    def check(self, n: int) -> None:
        if n < 2:
            raise ConfigError(f"FLAME needs n >= 2 updates to cluster them, got n = {n}")

    def select(self, updates: Tensor) -> Tensor:
        return self._select(gram(updates))

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        products = gram(updates)
        norms = products.diagonal().sqrt()
        selected = self._select(products)
        bound = norms.quantile(0.5)  # S, the mean of the two middle ones for even n
        share = (bound / norms).clamp_max(1.0).nan_to_num(nan=1.0)[selected] / len(selected)
        mean = torch.mv(updates[selected].T, share.to(updates))
        noise = torch.empty_like(mean).normal_(generator=server.generator)
        return Aggregated(mean + self.noise * bound.to(mean) * noise, selected)

    def _select(self, products: Tensor) -> Tensor:
        norms = products.diagonal().sqrt()
        cosines = (products / (norms[:, None] * norms)).nan_to_num(nan=0.0)  # a zero update
        distances = (1 - cosines).clamp_min(0.0).fill_diagonal_(0.0)
        # between parallel updates there is rounding alone, which HDBSCAN would take for a distance
        return main_cluster(distances.round(decimals=12))
