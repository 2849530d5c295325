"""Files that are written whole or not at all, whatever moment the process is killed at."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

PART = ".part"  # the suffix of a file that is still being written
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Puts ``data`` on the disk under a name of its own, and then in the place of ``path``.

    Args:
        path: in a folder that exists.
        data: all of the file.

    Raises:
        OSError: with ``path`` as its file name; what was at ``path`` is intact.
    """
    part = _part(path)
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _put(part, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{PART}")


def _put(part: Path, path: Path) -> None:
    os.replace(part, path)
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut may undo the renaming
    finally:
        os.close(folder)


def full_disk(error: BaseException | None) -> OSError | None:
    """The first error in the chain of causes of ``error`` that says that a disk is full."""
    found = None
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
            found = error if error.filename or found is None else found
        error = error.__cause__ or error.__context__
    return found
