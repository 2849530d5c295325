"""Accuracies over a test set, and their mean over rounds."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class _Share(Metric):
    """Share of predictions that equal a target, of those that count."""

    is_differentiable = False
    full_state_update = False
    hits: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Counts a batch.

        Args:
            preds: predicted classes (B,) or logits (B, classes).
            target: classes (B,): the true ones, or the ones that the attacker wants.
            mask: which images (B,) count; all if not given.
        """
        if preds.ndim == 2:
            preds = preds.argmax(dim=1)
        hit = preds == target
        mask = torch.ones_like(hit) if mask is None else mask
        # not in place: Lightning's validate() leaves tensors that autograd may not see
        self.hits = self.hits + (hit & mask).sum()
        self.total = self.total + mask.sum()

    def compute(self) -> Tensor:
        """The share () in [0, 1]; NaN before any image was counted."""
        return self.hits / self.total


class CleanAccuracy(_Share):
    """Share of test images that are classified correctly.

    >>> CleanAccuracy()(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 0]))
    tensor(0.7500)
    """

    higher_is_better = True


class BackdoorAccuracy(_Share):
    """Share of triggered test images, true label not the target, that the model calls target.

    >>> predictions, target = torch.tensor([8, 8, 1, 8]), torch.full((4,), 8)
    >>> BackdoorAccuracy()(predictions, target, mask=torch.tensor([True, True, True, False]))
    tensor(0.6667)

    Differences:
        1. The released LeadFL code counts images of the target class as well, which puts a floor
           of about 10 % under ten classes: update without a mask.
    """

    higher_is_better = None


class AverageOverRounds(Metric):
    """Mean of one number a round, over the rounds so far.

    Every rank of a distributed run sees the same number, so nothing is reduced across ranks; the
    state is two scalars, which :meth:`~torch.nn.Module.state_dict` carries into a checkpoint.

    >>> metric = AverageOverRounds()
    >>> metric.update(torch.tensor(0.2)); metric.update(torch.tensor(0.6))
    >>> metric.compute()
    tensor(0.4000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    total: Tensor
    rounds: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        zero = torch.tensor(0.0, dtype=torch.float64)
        self.add_state("total", zero, dist_reduce_fx="sum", persistent=True)
        self.add_state("rounds", torch.tensor(0), dist_reduce_fx="sum", persistent=True)

    def update(self, value: Tensor) -> None:
        """Adds the value () of one round."""
        self.total = self.total + value.to(self.total)
        self.rounds = self.rounds + 1

    def compute(self) -> Tensor:
        """The mean ()."""
        return self.total / self.rounds
