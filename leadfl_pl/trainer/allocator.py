"""What malloc does with the memory of a tensor that is gone."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them, see mallopt(3)
LARGEST = (1 << 30, 32 << 20)  # bytes; older versions take the second at most


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep freed blocks for the next tensor, for the rest of the process.

    As it is, each block of more than 32 MB goes back to the system when it is freed and comes
    again page by page, zeroed: for the activations of an evaluation batch that takes longer than
    to compute them. Elsewhere than under glibc, nothing is done.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    for size in LARGEST:
        if mallopt(MMAP_THRESHOLD, size):
            return bool(mallopt(TRIM_THRESHOLD, size))
    return False
