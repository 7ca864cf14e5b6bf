"""Files that appear whole or not at all, even if two programs write the same one at the same time.

Nothing here knows what a file holds.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Writer = Callable[[Path], object]


def write_whole(path: Path, write: Writer, *, private: bool = True) -> None:
    """Have ``write`` fill a new file that then takes the place of ``path``; durable when this returns.

    A ``private`` one, which shows people or is made of them, is for its owner only.  Missing folders are made.
    Whatever ``write`` raises leaves an older file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
        write(part)
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Whether ``path`` is what a program that was killed while writing leaves behind."""
    return path.name.startswith(".") and path.name.endswith(".part")


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file or folder while the ``with`` block runs.

    Args:
        path: The file or folder.  A file that is missing is made; a folder must exist.
        shared: Other holders of a shared lock may work at the same time.
        wait: Wait until the lock is free.

    Raises:
        BlockingIOError: Another process holds the lock, and ``wait`` is false.
        OSError: The file cannot be opened.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_CREAT | os.O_RDWR
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
