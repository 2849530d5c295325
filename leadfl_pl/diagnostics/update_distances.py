"""How far apart the updates of honest clients and of attackers are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leadfl_pl.core.distances import row_norms, squared_distances
from leadfl_pl.core.values import ClientUpdate
from leadfl_pl.federation.server import RoundResult
from leadfl_pl.trainer.callback import FederatedCallback


def mean_distances(updates: Tensor, malicious: Tensor) -> dict[str, float]:
    """Mean norms and mean distances of two groups of updates; what has no pair is left out.

    >>> updates = torch.tensor([[0.0, 3.0], [0.0, 5.0], [4.0, 0.0]])
    >>> mean_distances(updates, malicious=torch.tensor([False, False, True]))
    {'norm/honest': 4.0, 'norm/malicious': 4.0, 'distance/honest': 2.0, 'distance/between': 5.70...}

    Args:
        updates: (n, d).
        malicious: (n,), which of them are of malicious clients.
    """
    norms, distances = row_norms(updates), squared_distances(updates).sqrt()
    honest = ~malicious
    groups = {"honest": honest, "malicious": malicious}
    pairs = {name: (group[:, None] & group).triu(1) for name, group in groups.items()}
    pairs["between"] = honest[:, None] & malicious
    means = {f"norm/{name}": norms[group] for name, group in groups.items()}
    means |= {f"distance/{name}": distances[chosen] for name, chosen in pairs.items()}
    return {name: float(values.mean()) for name, values in means.items() if len(values)}


class UpdateDistances(FederatedCallback):
    r"""Measures how far apart the updates are: whether a rule of distances can tell attackers.

    With the well-formed updates :math:`\delta_c` (d,) of a round as the rule sees them, crafted
    ones and the buffers of ``distance_space: state`` included, it logs

    - ``updates/distance/honest`` and ``updates/distance/malicious``: the mean of
      :math:`\lVert\delta_a - \delta_b\rVert` over the pairs of honest and of malicious clients;
    - ``updates/distance/between``: over the pairs of an honest and a malicious one;
    - ``updates/norm/honest`` and ``updates/norm/malicious``: the mean of
      :math:`\lVert\delta_c\rVert`.

    Where a round has no such pair or client the value is missing. It costs
    :math:`O(n^2 d)` a round, as much as the distances of :class:`~leadfl_pl.MultiKrum`.

    Raises:
        ConfigError: the Trainer is no :class:`~leadfl_pl.FederatedTrainer`.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}  # of the running round

    def on_server_step(
        self, trainer: Any, pl_module: Any, updates: list[ClientUpdate], result: RoundResult
    ) -> None:
        well_formed = set(result.received)
        received = [u for u in updates if u.client_id in well_formed]
        if received:
            rows = torch.stack([u.delta for u in received])
            malicious = trainer.federation.cohort(trainer.current_epoch).mask(received)
            self.values = mean_distances(rows, torch.tensor(malicious, device=rows.device))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log_dict({f"updates/{name}": value for name, value in self.values.items()})
        self.values = {}

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = state_dict["values"]
