"""How well a rule tells attackers from honest clients."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from leadfl_pl.core.errors import ConfigError


class Detection(NamedTuple):
    """What :class:`AttackerDetection` computes; each () in [0, 1], NaN where it is 0 / 0."""

    precision: Tensor
    recall: Tensor
    false_positive_rate: Tensor
    auroc: Tensor


def detection_rates(
    attackers: float, honest: float, attackers_rejected: float, honest_rejected: float
) -> tuple[float, float, float]:
    """Precision, recall and false-positive rate of rejecting clients; NaN for 0 / 0.

    >>> detection_rates(attackers=4, honest=10, attackers_rejected=3, honest_rejected=1)
    (0.75, 0.75, 0.1)
    """
    rejected = attackers_rejected + honest_rejected
    return (
        attackers_rejected / rejected if rejected else nan,
        attackers_rejected / attackers if attackers else nan,
        honest_rejected / honest if honest else nan,
    )


class AttackerDetection(Metric):
    r"""Precision, recall, false-positive rate and AUROC of a rule as a detector of attackers.

    A client counts as detected if the rule did not use its update; counts are sums over rounds:

    .. math:: precision = \frac{\text{attackers rejected}}{\text{rejected}}, \quad
        recall = \frac{\text{attackers rejected}}{\text{attackers}}, \quad
        FPR = \frac{\text{honest rejected}}{\text{honest}}

    AUROC is the share of pairs of an attacker and an honest client *of the same round* in which the
    attacker has the higher score, a tie counting half: scores of different rounds have no common
    scale. NaN for a rule without scores.

    Every rank of a distributed run sees the same numbers, so nothing is reduced across ranks;
    :meth:`~torch.nn.Module.state_dict` carries the state into a checkpoint.

    >>> metric = AttackerDetection()
    >>> metric.update([7, 2, 9], [True, False, False], selected=[2], scores=[5.0, 1.0, 6.0])
    >>> [round(value.item(), 2) for value in metric.compute()]
    [0.5, 1.0, 0.5, 0.5]
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    counts: Tensor  # (4,) attackers, honest clients, and those of each that were rejected
    pairs: Tensor  # (2,) pairs in which the attacker scores higher, and all pairs

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        for name, size in (("counts", 4), ("pairs", 2)):
            zeros = torch.zeros(size, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum", persistent=True)

    def update(
        self,
        client_ids: Sequence[int],
        malicious: Sequence[bool],
        selected: Collection[int],
        scores: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Adds a round.

        Args:
            client_ids: the n clients whose updates the rule saw, or the cohort's, to count failed
                clients and malformed updates as rejected.
            malicious: the truth about them (n,).
            selected: ids of those whose updates the rule used.
            scores: of them (n,), if the rule has scores; higher is more suspicious.

        Raises:
            ConfigError: the lengths differ, or a client was selected that is not among the n.
        """
        scored = client_ids if scores is None else scores
        if not len(client_ids) == len(malicious) == len(scored):
            raise ConfigError(
                "AttackerDetection: client_ids, malicious and scores must have the same length, "
                f"got {len(client_ids)}, {len(malicious)} and {len(scored)}"
            )
        if unknown := set(selected) - set(client_ids):
            raise ConfigError(
                f"AttackerDetection: selected must be among client_ids, got {sorted(unknown)} too"
            )
        truth = torch.as_tensor(malicious, dtype=torch.bool)
        rejected = torch.tensor([c not in selected for c in client_ids], dtype=torch.bool)
        groups = (truth, ~truth, truth & rejected, ~truth & rejected)
        self.counts = self.counts + torch.stack([g.sum() for g in groups]).to(self.counts)
        if scores is not None:
            s = torch.as_tensor(scores, dtype=torch.float64, device="cpu")
            a, h = s[truth, None], s[~truth]  # (attackers, 1) and (honest,)
            won = (a > h).double() + 0.5 * (a == h).double()  # two infinite scores are a tie
            self.pairs = self.pairs + torch.tensor([won.sum(), won.numel()]).to(self.pairs)

    def compute(self) -> Detection:
        """The four numbers, over the rounds so far."""
        precision, recall, rate = self.counts.new_tensor(detection_rates(*self.counts.tolist()))
        return Detection(precision, recall, rate, self.pairs[0] / self.pairs[1])
