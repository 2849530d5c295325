"""Random streams: every draw is a function of (seed, purpose, round, client) and of nothing else.

So no result depends on the number of devices, on the order of the clients, or on whether a run
was resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

MAX_SEED = 2**32 - 1  # NumPy's


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for one purpose, e.g. ``("noise", round, client)``.

    >>> derive_seed(0, "noise", 3, 7)
    1154745187208343585
    >>> derive_seed(0, "noise", 37) == derive_seed(0, "noise", 3, 7)
    False
    """
    key = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def generator(
    seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on ``device``, seeded by :func:`derive_seed`. Streams differ between devices."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *indices))


def seed_all(seed: int) -> None:
    """Seeds the global generators of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed & MAX_SEED)
    random.seed(seed)


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Draws within change no random state of the process, also where they end in an exception.

    After an exception, Lightning's ``isolate_rng`` alone leaves the states as they are.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> with isolated_rng(7):
    ...     torch.initial_seed()
    7
    >>> torch.initial_seed()
    0

    Args:
        seed: of torch, NumPy and Python, within; as they are if not given.
    """
    isolation = isolate_rng()
    isolation.__enter__()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        isolation.__exit__(None, None, None)
