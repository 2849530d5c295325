"""Distances between the updates of a round, exact enough never to change a selection."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_WORK = 1 << 27  # pairs x coordinates up to which differences are taken one by one
BLOCK = 1 << 12  # columns at a time: a block of float64 rows stays in the cache
NEAR = 1e-6  # squared distances this small beside the rows' norms are taken from differences


def gram(rows: Tensor, centred: bool = False) -> Tensor:
    """Inner products (n, n) of the rows of (n, d), less their mean if ``centred``, in float64."""
    n = len(rows)
    products = torch.zeros(n, n, dtype=torch.float64, device=rows.device)
    for block in rows.split(BLOCK, dim=1):
        block = block.double()
        if centred:
            block = block - block.mean(dim=0)
        products.addmm_(block, block.T)
    return products


def inner_products(rows: Tensor, vector: Tensor) -> Tensor:
    """Inner products (n,) of the rows of (n, d) with a vector (d,), in float64."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block, part in zip(rows.split(BLOCK, dim=1), vector.split(BLOCK), strict=True):
        total += block.double() @ part.double()
    return total


def row_norms(rows: Tensor) -> Tensor:
    """L2 norms (n,) of the rows of (n, d), in float64."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split(BLOCK, dim=1):
        total += block.double().square().sum(dim=1)
    return total.sqrt_()


def distances_to_combination(rows: Tensor, weights: Tensor) -> Tensor:
    """Distances (n,) of the rows of (n, d) to their sum with ``weights`` (n,), in float64."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split(BLOCK, dim=1):
        block = block.double()
        total += (block - weights @ block).square_().sum(dim=1)
    return total.sqrt_()


def squared_distances(updates: Tensor) -> Tensor:
    """Squared Euclidean distances (n, n) between the rows of (n, d), in float64.

    Small stacks: from differences. Large ones: from the inner products of the rows less their
    mean, and from differences where two rows lie so close that those would cancel. Either way a
    distance is right to a relative error of 1e-9, does not move when the same vector is added to
    every row, and is exactly 0 between identical rows.
    """
    n, d = updates.shape
    if n * n * d // 2 <= EXACT_WORK:
        row, column = torch.triu_indices(n, n, offset=1, device=updates.device)
        distances = updates.new_zeros(n, n, dtype=torch.float64)
        distances[row, column] = torch.nn.functional.pdist(updates.double()).square()
        return distances + distances.T
    products = gram(updates, centred=True)
    norms = products.diagonal()
    scale = norms[:, None] + norms[None, :]
    distances = (scale - 2 * products).clamp_min(0.0)
    distances = (distances + distances.T) / 2
    row, column = (distances <= NEAR * scale).triu(diagonal=1).nonzero(as_tuple=True)
    distances[row, column] = distances[column, row] = _from_differences(updates, row, column)
    return distances.fill_diagonal_(0.0)


def _from_differences(updates: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Squared distances (p,) of the p pairs of rows, in float64."""
    total = torch.zeros(len(row), dtype=torch.float64, device=updates.device)
    width = max(1, EXACT_WORK // 8 // max(1, len(row)))
    for block in updates.split(width, dim=1):
        total += (block[row].double() - block[column].double()).square().sum(dim=1)
    return total


def krum_scores(distances: Tensor, neighbours: int) -> Tensor:
    """Sums (n,) of each row's ``neighbours`` smallest distances to the *other* rows.

    >>> points = torch.tensor([[0.0], [1.0], [3.0]])
    >>> krum_scores(squared_distances(points), neighbours=1)
    tensor([1., 1., 4.], dtype=torch.float64)
    """
    others = distances.clone().fill_diagonal_(float("inf")).nan_to_num_(nan=float("inf"))
    return others.sort(dim=1).values[:, :neighbours].sum(dim=1)
