"""How many rounds a backdoor outlives the attack."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from typing import NamedTuple

import torch
from torch import Tensor

from leadfl_pl.core.errors import require_number
from leadfl_pl.metrics.after_bursts import AfterBursts, after_bursts


class Lifespan(NamedTuple):
    """Of the backdoor that one burst left."""

    rounds: int  #: from the last round of the burst
    censored: bool  #: it lived at least as long, and was still there when last evaluated


def lifespans(
    values: Sequence[float], in_burst: Sequence[bool], threshold: float = 0.5
) -> list[Lifespan]:
    r"""The lifespan of the backdoor after each burst that has ended.

    With a_0 the backdoor accuracy after the last round of a burst and a_1 .. a_m after the rounds
    until the next burst or the end of the run,

    .. math:: L = \min \{l \ge 0 : a_j < threshold \text{ for all } j \ge l\},

    censored at m if there is no such l: a_m is not below the threshold. Rounds without a value are
    left out: only an evaluation shows that a backdoor is alive or gone.

    >>> lifespans([0.9, 0.4, 0.6, 0.3, 0.9, 0.8], [True, False, False, False, True, False])
    [Lifespan(rounds=3, censored=False), Lifespan(rounds=1, censored=True)]

    Args:
        values: backdoor accuracy (T,) in [0, 1], NaN where it was not evaluated.
        in_burst: whether the round is part of a burst (T,).
        threshold: accuracy below which the backdoor is gone.
    """
    lives = []
    for stretch in after_bursts(values, in_burst):
        alive, gone = 0, None
        for age, a in enumerate(stretch):
            if a >= threshold:
                alive, gone = age, None
            elif gone is None and not isnan(a):
                gone = age
        lives.append(Lifespan(alive, True) if gone is None else Lifespan(gone, False))
    return lives


def restricted_mean(lives: Sequence[Lifespan]) -> float:
    r"""The restricted mean: area under the Kaplan-Meier curve up to the longest time observed.

    .. math:: \int_0^\tau S(t)\,dt, \qquad S(t) = \prod_{u \le t} (1 - e_u / r_u)

    with e_u lifespans that end at u and r_u that are not shorter than u, censored or not. Without
    censoring it is the mean, with all censored at one time that time. A censored lifespan counts
    with those that were observed for longer, so it does not pull the mean down to where it was cut
    off. Where the longest is censored, the result is a lower bound. NaN if no burst was followed by
    an evaluation and none ended without a backdoor.

    >>> restricted_mean([Lifespan(5, False), Lifespan(2, True), Lifespan(3, False)])
    4.0
    """
    if all(life == (0, True) for life in lives):
        return nan
    area, survival, before = 0.0, 1.0, 0
    for time in sorted({life.rounds for life in lives}):
        area += survival * (time - before)
        at_risk = sum(life.rounds >= time for life in lives)
        survival *= 1 - sum(life == (time, False) for life in lives) / at_risk
        before = time
    return area


class MeanLifespan(NamedTuple):
    """What :class:`BackdoorLifespan` computes."""

    rounds: Tensor  #: () restricted mean; NaN without a burst
    bursts: Tensor  #: () that have ended
    censored: Tensor  #: () of the bursts


class BackdoorLifespan(AfterBursts):
    """Rounds from the end of a burst until backdoor accuracy stays below a threshold.

    See :func:`lifespans` for one burst, :func:`restricted_mean` for the mean over bursts, and
    :class:`~leadfl_pl.metrics.after_bursts.AfterBursts` for what a burst is and for the state.

    >>> metric = BackdoorLifespan(majority=5)
    >>> for accuracy, malicious in [(0.9, 6), (0.7, 0), (0.3, 2), (0.9, 6), (0.6, 0), (0.6, 0)]:
    ...     metric.update(accuracy, malicious)
    >>> metric.compute()
    MeanLifespan(rounds=tensor(2., dtype=torch.float64), bursts=tensor(2), censored=tensor(1))

    Args:
        majority: the number of malicious clients that a round of a burst exceeds, >= 0.
        threshold: accuracy in [0, 1] below which the backdoor is gone.
    """

    def __init__(self, majority: float = 0, threshold: float = 0.5) -> None:
        super().__init__(majority)
        require_number("BackdoorLifespan", "threshold", threshold, least=0, most=1)
        self.threshold = threshold

    def compute(self) -> MeanLifespan:
        """The mean lifespan, the number of bursts that ended and of those that are censored."""
        lives = lifespans(self.values.tolist(), self.in_burst.tolist(), self.threshold)
        return MeanLifespan(
            self.values.new_tensor(restricted_mean(lives)),
            torch.tensor(len(lives), device=self.values.device),
            torch.tensor(sum(life.censored for life in lives), device=self.values.device),
        )
