"""How fast backdoor accuracy decays once the attack has ended."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, log, nan

from torch import Tensor

from leadfl_pl.core.errors import require_number
from leadfl_pl.metrics.after_bursts import AfterBursts, after_bursts


def half_life(values: Sequence[float], in_burst: Sequence[bool], floor: float = 0.05) -> float:
    r"""The half-life, in rounds, fitted to the backdoor accuracies after bursts.

    With a_bl the accuracy l rounds after the last round of burst b, l = 0, 1, ..., least squares
    with a start for each burst and one half-life T for all:

    .. math:: \ln a_{bl} = c_b - l \ln 2 / T, \qquad
        T = -\ln 2 \frac{\sum_{bl} (l - \bar l_b)^2}{\sum_{bl} (l - \bar l_b) \ln a_{bl}}

    A burst's fit ends with the first round at or below the floor, which counts as the floor: below
    it are the clean model's errors, which do not decay. Rounds without a value are left out. NaN if
    the accuracy does not decay (the slope is not negative), or no burst has two values.

    >>> round(half_life([0.8, 0.8, 0.4, 0.2, 0.1], [True, True, False, False, False]), 9)
    1.0

    Args:
        values: backdoor accuracy (T,) in [0, 1], NaN where it was not evaluated.
        in_burst: whether the round is part of a burst (T,).
        floor: accuracy > 0 down to which the decay is fitted.
    """
    spread = covariance = 0.0
    for stretch in after_bursts(values, in_burst):
        points: list[tuple[int, float]] = []
        for age, a in enumerate(stretch):
            if not isnan(a):
                points.append((age, log(max(a, floor))))
            if a <= floor:
                break
        if points:
            mean = sum(age for age, _ in points) / len(points)
            spread += sum((age - mean) ** 2 for age, _ in points)
            first = points[0][1]  # what does not change has a covariance of exactly 0
            covariance += sum((age - mean) * (y - first) for age, y in points)
    return -log(2) * spread / covariance if covariance < 0 else nan


class RecoveryHalfLife(AfterBursts):
    """The half-life, in rounds, of backdoor accuracy after bursts; NaN where it does not decay.

    See :func:`half_life` for the formula, and
    :class:`~leadfl_pl.metrics.after_bursts.AfterBursts` for what a burst is and for the state.

    >>> metric = RecoveryHalfLife()
    >>> for accuracy, malicious in [(0.8, 6), (0.4, 0), (0.2, 0), (0.1, 0)]:
    ...     metric.update(accuracy, malicious)
    >>> metric.compute()
    tensor(1.0000, dtype=torch.float64)

    Args:
        majority: the number of malicious clients that a round of a burst exceeds, >= 0.
        floor: accuracy in (0, 1] down to which the decay is fitted.
    """

    def __init__(self, majority: float = 0, floor: float = 0.05) -> None:
        super().__init__(majority)
        require_number("RecoveryHalfLife", "floor", floor, above=0, most=1)
        self.floor = floor

    def compute(self) -> Tensor:
        """The half-life ()."""
        rounds = half_life(self.values.tolist(), self.in_burst.tolist(), self.floor)
        return self.values.new_tensor(rounds)
