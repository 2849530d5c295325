"""FLTrust: trust in the direction of the server's own update."""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import Aggregated, Aggregator
from leadfl_pl.core.distances import inner_products, row_norms
from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.values import ServerContext


class FLTrust(Aggregator):
    r"""FLTrust: updates rescaled to the root update's length, weighted by their trust scores.

    The server trains on a small clean root data set and gets :math:`\delta_0`. With
    :math:`s_c = \mathrm{ReLU}(\cos(\delta_c, \delta_0))` the aggregate is
    :math:`\sum_c s_c \frac{\lVert\delta_0\rVert}{\lVert\delta_c\rVert} \delta_c / \sum_c s_c`, and
    zero if all the scores are.

    >>> root = ServerContext(root_update=torch.tensor([1.0, 0.0]))
    >>> FLTrust()(torch.tensor([[8.0, 0.0], [-9.0, 0.1]]), server=root)
    tensor([1., 0.])

    Args:
        root_size: examples in the root data set, drawn uniformly from the training set, >= 1. With
            ``local_epochs``, a root data set larger than a client's takes more steps, so that its
            update is longer and clients' updates are scaled up to it.

    Raises:
        ConfigError: root_size < 1 or above the number of training examples; no root update.
        FloatingPointError: training on the root data set has diverged.

    References:
        Cao, Fang, Liu, Gong. FLTrust: Byzantine-robust Federated Learning via Trust
        Bootstrapping. NDSS 2021.

    Differences:
        1. The root data set is drawn from all clients' training examples, as in the paper's
           experiments, and stays with the clients as well.
    """

    def __init__(self, root_size: int = 100) -> None:
        super().__init__()
        require_number("FLTrust", "root_size", root_size, least=1, whole=True)
        self.root_size = root_size

    def aggregate(self, updates: Tensor, weights: Tensor, server: ServerContext) -> Aggregated:
        if server.root_update is None:
            raise ConfigError("FLTrust needs the update of a root data set, server.root_update")
        root = server.root_update.to(updates)
        if not bool(root.isfinite().all()):
            raise FloatingPointError(
                "FLTrust needs a finite update of the root data set, on which training has "
                "diverged. Lower the learning rate, or take a smaller root_size"
            )
        norms, root_norm = row_norms(updates), row_norms(root[None])  # (n,), (1,)
        cosines = inner_products(updates, root) / (norms * root_norm)
        trust = cosines.nan_to_num_(nan=0.0).relu_()  # a zero update has no direction
        scaled = trust * root_norm / (norms * trust.sum())
        shares = torch.where(trust > 0, scaled, 0.0)
        return Aggregated(torch.mv(updates.T, shares.to(updates)), trust.nonzero().squeeze(1))
