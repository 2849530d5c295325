"""Clients of different sizes, all with the same mix of labels."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.core.errors import require_number
from leadfl_pl.core.rng import generator
from leadfl_pl.data.splits.base import Split
from leadfl_pl.data.splits.draws import draw_sizes


class QuantitySkew(Split):
    r"""Sizes drawn from a Dirichlet distribution, examples drawn without regard to their labels.

    :math:`q \sim \mathrm{Dir}(\beta 1_K)`; client k gets a share :math:`q_k` of the shuffled
    examples. Drawn again until every client has ``min_examples``.

    Args:
        beta: concentration, > 0: small gives a few clients nearly everything.
        min_examples: the fewest examples that a client may have, >= 1.

    Raises:
        ConfigError: beta or ``min_examples`` out of range; when called, if no draw gives every
            client enough.

    >>> parts = QuantitySkew(beta=2.0, min_examples=5)(torch.zeros(100), num_clients=4, seed=0)
    >>> sum(len(p) for p in parts), min(len(p) for p in parts) >= 5
    (100, True)

    References:
        Li, Diao, Chen, He 2022, see :class:`Dirichlet` (":math:`q \sim Dir(\beta)`").

    Differences:
        1. NIID-Bench draws until every client has 10 examples; here ``min_examples``.
    """

    def __init__(self, beta: float = 0.5, min_examples: int = 1) -> None:
        require_number("QuantitySkew", "beta", beta, above=0)
        require_number("QuantitySkew", "min_examples", min_examples, least=1, whole=True)
        self.beta = beta
        self.min_examples = min_examples

    def __call__(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        order = torch.randperm(len(labels), generator=generator(seed, "split"))
        (sizes,) = draw_sizes(
            "QuantitySkew", [len(labels)], num_clients, self.beta, self.min_examples, seed
        )
        return list(order.split(sizes.tolist()))
