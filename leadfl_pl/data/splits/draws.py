"""Numbers of examples drawn from a Dirichlet distribution until every client has enough."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.core.rng import derive_seed

ATTEMPTS = 1000


def draw_sizes(
    owner: str, totals: Sequence[int], num_clients: int, beta: float, min_examples: int, seed: int
) -> Tensor:
    r"""How many examples of each class each client gets: :math:`p_j \sim \mathrm{Dir}(\beta 1_K)`.

    Class j is cut at :math:`\lfloor n_j \sum_{l \le k} p_{jl} \rfloor`, so that each of its
    examples goes to a client. Attempt a is a function of (seed, owner, a).

    Args:
        owner: the split that draws, for its stream and for the message.
        totals: numbers n_j of examples of the C classes.
        num_clients: K.
        beta: concentration, > 0; small is uneven.
        min_examples: the fewest examples, over all classes, that a client may get.
        seed: of the experiment.

    Returns:
        (C, K) int64, rows that sum to ``totals``.

    Raises:
        ConfigError: there are too few examples, or no attempt gave every client enough.

    >>> draw_sizes("Dirichlet", [100], num_clients=4, beta=1e6, min_examples=1, seed=0).sum()
    tensor(100)
    """
    class_sizes = np.asarray(totals, dtype=np.int64)
    wanted = (
        f"{owner}: trainer.federation.num_clients = {num_clients} with at least "
        f"min_examples = {min_examples} each"
    )
    if (total := int(class_sizes.sum())) < num_clients * min_examples:
        raise ConfigError(
            f"{wanted} need {num_clients * min_examples} training examples, but there are {total}; "
            "use fewer clients or a smaller min_examples"
        )
    fewest = 0
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng(derive_seed(seed, f"split/{owner}", attempt))
        shares = rng.dirichlet(np.full(num_clients, beta), size=len(class_sizes))  # (C, K)
        ends = (shares.cumsum(axis=1) * class_sizes[:, None]).astype(np.int64)
        ends[:, -1] = class_sizes
        sizes = np.diff(ends, axis=1, prepend=0)
        fewest = max(fewest, int(sizes.sum(axis=0).min()))
        if fewest >= min_examples:
            return torch.from_numpy(sizes)
    raise ConfigError(
        f"{wanted} cannot be had with beta = {beta}: the best of {ATTEMPTS} draws left a client "
        f"with {fewest} of the {total} training examples; use a larger beta, fewer clients or a "
        "smaller min_examples"
    )
