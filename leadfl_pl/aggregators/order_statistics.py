"""Order statistics of each coordinate, without a loop over coordinates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 1 << 13  # coordinates at a time: a block of values stays in the cache


def over_sorted(updates: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """One value (d,) for each coordinate, made of its n values in ascending order.

    Args:
        updates: (n, d), finite.
        reduce: (c, n), each row ascending, to (c,); called for blocks of c coordinates.

    >>> over_sorted(torch.tensor([[3.0, 1.0], [2.0, 5.0]]), lambda values: values[:, 0])
    tensor([2., 1.])
    """
    parts = []
    for block in updates.split(BLOCK, dim=1):
        values = block.T.clone(memory_format=torch.contiguous_format)
        if values.device.type == "cpu":
            values.numpy().sort(axis=1)  # in place, and eight times faster than torch's for n = 100
        else:
            values = values.sort(dim=1).values
        parts.append(reduce(values))
    return torch.cat(parts)


def middle(values: Tensor) -> Tensor:
    """The median (c,) of ascending rows (c, n): the mean of the two middle values for even n."""
    n = values.shape[1]
    return (values[:, (n - 1) // 2] + values[:, n // 2]) / 2
