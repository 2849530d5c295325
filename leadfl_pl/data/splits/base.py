"""What a split is, and numbers that say how far from IID it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from leadfl_pl.core.errors import ConfigError, require_tensor, summarise


class Split(ABC):
    """Assigns every training example to exactly one client."""

    @abstractmethod
    def __call__(self, labels: Tensor, num_clients: int, seed: int) -> list[Tensor]:
        """Indices of the examples of each client.

        Args:
            labels: classes (N,) of the training set, any integers.
            num_clients: K.
            seed: of the experiment; the same seed gives the same split.

        Returns:
            K index tensors (int64) that together hold 0 .. N - 1 once each, none of them empty.

        Raises:
            ConfigError: a client would get no example.
        """


def check_split(split: Split, parts: list[Tensor], num_clients: int, n: int) -> list[Tensor]:
    """Returns ``parts``, what ``split`` made of n examples, if it is what a split must return.

    Raises:
        ConfigError: there are not K int64 tensors (n_k,) that hold each of 0 .. n - 1 once, none
            of them empty.
    """
    demand = f"{type(split).__name__} must return"
    if not isinstance(parts, (list, tuple)) or len(parts) != num_clients:
        shown = f"{len(parts)}" if isinstance(parts, (list, tuple)) else summarise(parts)
        raise ConfigError(f"{demand} {num_clients} index tensors, one a client, got {shown}")
    for client, part in enumerate(parts):
        require_tensor(f"{demand} for client {client}", part, ("n",), torch.int64)
        if len(part) == 0:
            raise ConfigError(
                f"{type(split).__name__}: trainer.federation.num_clients = {num_clients} leaves "
                f"client {client} without any of the {n} training examples; use at most {n} "
                "clients, or a split that gives each of them at least one"
            )
    index = torch.cat(list(parts))
    first, last = int(index.min()), int(index.max())
    if first < 0 or last >= n:
        raise ConfigError(f"{demand} indices in 0 .. {n - 1}, got {first} .. {last}")
    times = index.bincount(minlength=n)
    if bool((times != 1).any()):
        example = int((times != 1).nonzero()[0])
        raise ConfigError(
            f"{demand} each of the {n} examples once, got example {example} {times[example]} times"
        )
    return parts


def label_counts(labels: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """How many examples of each class each client has.

    Args:
        labels: classes (N,).
        parts: the K clients' indices.

    Returns:
        (K, C) int64, where column j is the j-th smallest of the C classes in ``labels``.

    >>> label_counts(torch.tensor([7, 3, 3, 7, 3]), [torch.tensor([0, 1]), torch.tensor([2, 3, 4])])
    tensor([[1, 1],
            [2, 1]])
    """
    classes, column = labels.unique(return_inverse=True)
    return torch.stack([column[part].bincount(minlength=len(classes)) for part in parts])


def summary(labels: Tensor, parts: Sequence[Tensor]) -> dict[str, float]:
    r"""A split in six numbers.

    ``label_distance`` is the mean over the clients of the total variation
    :math:`\frac12 \sum_j |p_{kj} - p_j|` between a client's shares of the classes and the whole
    set's: 0 if every client has the whole set's shares, 1 - 1/C if each has one of C equally
    frequent classes. Small clients have a distance above 0 by chance alone.

    Args:
        labels: classes (N,).
        parts: the K clients' indices.

    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> halves = summary(labels, [torch.tensor([0, 1]), torch.tensor([2, 3])])
    >>> halves["labels_per_client"], halves["label_distance"]
    (1.0, 0.5)
    """
    counts = label_counts(labels, parts).double()
    sizes = counts.sum(dim=1)
    shares = counts / sizes.unsqueeze(1)
    whole = counts.sum(dim=0) / counts.sum()
    return {
        "clients": float(len(parts)),
        "min_examples": float(sizes.min()),
        "median_examples": float(median(sizes.tolist())),
        "max_examples": float(sizes.max()),
        "labels_per_client": float((counts > 0).sum(dim=1).double().mean()),
        "label_distance": float(0.5 * (shares - whole).abs().sum(dim=1).mean()),
    }
