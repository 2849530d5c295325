"""Distances between the updates of a round, exact enough never to change a selection."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

EXACT_WORK = 1 << 27  # pairs x coordinates up to which differences are taken one by one
BLOCK = 1 << 12  # coordinates at a time: no float64 copy of all the rows, and a block is cached
NEAR = 1e-6  # squared distances this small beside the rows' norms are taken from differences


def _blocks(rows: Tensor, about: Tensor | None) -> Iterator[Tensor]:
    """Blocks (n, c) of the rows of (n, d) in float64, less ``about @ rows`` if given."""
    for block in rows.split(BLOCK, dim=1):
        block = block.double()
        yield block if about is None else block - about @ block


def gram(rows: Tensor, about: Tensor | None = None) -> Tensor:
    """Inner products (n, n) of the rows of (n, d), in float64.

    Args:
        rows: (n, d).
        about: weights (n,) of the rows, float64; their sum with these weights is subtracted from
            each row first. The origin stays where it is if not given.

    >>> gram(torch.tensor([[0.0, 2.0], [4.0, 0.0]]), about=torch.tensor([0.5, 0.5]).double())
    tensor([[ 5., -5.],
            [-5.,  5.]], dtype=torch.float64)
    """
    products = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in _blocks(rows, about):
        products.addmm_(block, block.T)
    return products


def row_norms(rows: Tensor, about: Tensor | None = None) -> Tensor:
    """L2 norms (n,) of the rows of (n, d), in float64; ``about`` as in :func:`gram`.

    >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([5., 0.], dtype=torch.float64)
    """
    squares = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in _blocks(rows, about):
        squares += block.square().sum(dim=1)
    return squares.sqrt_()


def inner_products(rows: Tensor, vector: Tensor) -> Tensor:
    """Inner products (n,) of the rows of (n, d) with a vector (d,), in float64."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block, part in zip(rows.split(BLOCK, dim=1), vector.split(BLOCK), strict=True):
        total += block.double() @ part.double()
    return total


def squared_distances(updates: Tensor) -> Tensor:
    """Squared Euclidean distances (n, n) between the rows of (n, d), in float64.

    Small stacks: from differences. Large ones: from the inner products of the rows less their
    mean, and from differences where two rows lie so close that those would cancel. Either way a
    distance is right to a relative error of 1e-9, does not move when the same vector is added to
    every row, and is exactly 0 between identical rows.

    >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[ 0., 25.],
            [25.,  0.]], dtype=torch.float64)
    """
    n, d = updates.shape
    if n * n * d // 2 <= EXACT_WORK:
        row, column = torch.triu_indices(n, n, offset=1, device=updates.device)
        distances = updates.new_zeros(n, n, dtype=torch.float64)
        distances[row, column] = torch.nn.functional.pdist(updates.double()).square()
        return distances + distances.T
    products = gram(updates, about=updates.new_full((n,), 1 / n, dtype=torch.float64))
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
