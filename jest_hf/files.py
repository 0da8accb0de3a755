# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Write files whole, in a new file that takes the place of the old one in one move; and locks between processes."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp"  # ending of the names of files that are being written
_HELD: dict[str, int] = {}  # locks of this process, and their descriptors


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` when the block ends: whatever happens, `path` is whole or as it was.

    The file has a random name in the folder of `path` and is made anew: a link that lies in its place is not followed.
    Its contents, and then its new name, are on the disk when the block has ended.

    Args:
        path (`str` or `os.PathLike`): The file, in an existing folder.

    Raises:
        OSError: if the file cannot be written. The part that was written is removed.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from jest_hf.files import replacing
    >>> path = Path(tempfile.mkdtemp(), "notes.txt")
    >>> with replacing(path) as file:
    ...     _ = file.write(b"whole")
    >>> path.read_text()
    'whole'

    ```
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    with open(temporary, "xb") as file:  # "x": O_EXCL, which fails for any name that is taken, links included
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def remove_unfinished(folder: str | os.PathLike[str], name: str = "") -> None:
    """Remove what [`replacing`] has left of files `name*` when its process was killed. No other process may write."""
    for path in Path(folder).glob(f".{name}*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring the names in a folder to the disk, where the system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: str | os.PathLike[str]) -> bool:
    """Take a lock between processes, which ends with the process, however that ends.

    Args:
        path (`str` or `os.PathLike`): The file of the lock, in an existing folder.

    Returns:
        `bool`: whether no other process has the lock. A file system without locks counts as free.
    """
    name = os.path.abspath(path)
    if fcntl is None or name in _HELD:
        return True
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            # Not flock: loader workers would inherit that, and keep it for a while after their process was killed.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = os.path.exists(name) and os.path.samestat(os.fstat(descriptor), os.stat(name))
        except OSError as error:
            os.close(descriptor)
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        if current:
            _HELD[name] = descriptor
            return True
        os.close(descriptor)  # the process that had the lock has removed this file in between


def unlock(path: str | os.PathLike[str]) -> None:
    """Give a lock of this process back, and remove its file; without the lock do nothing."""
    descriptor = _HELD.pop(os.path.abspath(path), None)
    if descriptor is not None:
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


__all__ = ["TEMPORARY", "lock", "remove_unfinished", "replacing", "sync_folder", "unlock"]
