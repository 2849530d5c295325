"""Label skew with one number."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.core.errors import require_number
from leadfl_pl.core.rng import generator
from leadfl_pl.data.splits.base import Split
from leadfl_pl.data.splits.draws import draw_sizes


class Dirichlet(Split):
    r"""Each class is split over the clients in shares drawn from a Dirichlet distribution.

    :math:`p_j \sim \mathrm{Dir}(\beta 1_K)` for each class j; client k gets a share
    :math:`p_{jk}` of its examples. Drawn again until every client has ``min_examples``. Both the
    classes' shares and the clients' sizes differ.

    Args:
        beta: concentration, > 0: 0.1 is very uneven, 100 nearly IID.
        min_examples: the fewest examples that a client may have, >= 1.

    Raises:
        ConfigError: beta or ``min_examples`` out of range; when called, if no draw gives every
            client enough.

    >>> parts = Dirichlet(beta=0.5)(torch.arange(100) % 2, num_clients=3, seed=0)
    >>> sum(len(p) for p in parts)
    100

    References:
        Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni. Bayesian Nonparametric Federated
        Learning of Neural Networks. ICML 2019.
        Li, Diao, Chen, He. Federated Learning on Non-IID Data Silos: An Experimental Study. ICDE
        2022 (NIID-Bench, ":math:`p_k \sim Dir(\beta)`").

    Differences:
        1. The code of both gives no more of a class to clients that already have N / K examples;
           here every share is as drawn.
        2. That code draws until every client has 10 examples, however long it takes; here the
           number is ``min_examples`` and the draws are limited.
        3. Hsu, Qi, Brown (arXiv:1909.06335) draw each *client's* shares of the classes, so that
           all clients have equally many examples; here they do not.
    """

    def __init__(self, beta: float = 0.5, min_examples: int = 1) -> None:
        require_number("Dirichlet", "beta", beta, above=0)
        require_number("Dirichlet", "min_examples", min_examples, least=1, whole=True)
        self.beta = beta
        self.min_examples = min_examples

    def __call__(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        order = torch.randperm(len(labels), generator=generator(seed, "split"))
        classes = [order[labels[order] == label] for label in labels.unique()]
        totals = [len(examples) for examples in classes]
        sizes = draw_sizes("Dirichlet", totals, num_clients, self.beta, self.min_examples, seed)
        shares = [c.split(s.tolist()) for c, s in zip(classes, sizes, strict=True)]
        return [torch.cat(parts) for parts in zip(*shares, strict=True)]
