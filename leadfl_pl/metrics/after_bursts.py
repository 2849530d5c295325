"""What follows each burst of an attack, as lists of numbers and as a metric's state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from leadfl_pl.core.errors import require_number


def after_bursts(values: Sequence[float], in_burst: Sequence[bool]) -> list[list[float]]:
    """For each burst that has ended the values of its last round and of those until the next burst.

    A burst is a maximal run of rounds that are ``in_burst``.

    >>> after_bursts([0.1, 0.9, 0.8, 0.7, 0.6, 0.9], [False, True, True, False, False, True])
    [[0.8, 0.7, 0.6]]

    Args:
        values: one a round (T,), NaN for a round that was not evaluated.
        in_burst: whether the round is part of a burst (T,).
    """
    stretches: list[list[float]] = []
    attacked_before = False
    for value, attacked in zip(values, in_burst, strict=True):
        if attacked and attacked_before:
            stretches[-1] = [value]
        elif attacked:
            stretches.append([value])
        elif stretches:
            stretches[-1].append(value)
        attacked_before = attacked
    return stretches[:-1] if attacked_before else stretches


class AfterBursts(Metric):
    """Backdoor accuracy and bursts, round by round: the state of what is measured after bursts.

    A round is part of a burst if more than ``majority`` clients of its cohort are malicious. With
    n / 2 of a cohort of n these are the "rounds with a malicious majority" of a run's summary; with
    0, the default, every round with a malicious client.

    Every rank of a distributed run sees the same numbers, so nothing is reduced across ranks;
    :meth:`~torch.nn.Module.state_dict` carries the state into a checkpoint.

    Args:
        majority: the number of malicious clients that a round of a burst exceeds, >= 0.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    values: Tensor  # (T,)
    in_burst: Tensor  # (T,)

    def __init__(self, majority: float = 0) -> None:
        super().__init__(sync_on_compute=False)
        require_number(type(self).__name__, "majority", majority, least=0)
        self.majority = majority
        empty = torch.empty(0, dtype=torch.float64)
        self.add_state("values", empty, dist_reduce_fx="cat", persistent=True)
        self.add_state("in_burst", empty.bool(), dist_reduce_fx="cat", persistent=True)

    def update(self, value: Tensor | float, malicious_sampled: Tensor | float) -> None:
        """Adds a round.

        Args:
            value: backdoor accuracy () after the round, NaN if it was not evaluated.
            malicious_sampled: malicious clients () in its cohort.
        """
        value = torch.as_tensor(value, dtype=torch.float64, device=self.values.device)
        self.values = torch.cat([self.values, value.reshape(1)])
        attacked = self.in_burst.new_tensor([float(malicious_sampled) > self.majority])
        self.in_burst = torch.cat([self.in_burst, attacked])
