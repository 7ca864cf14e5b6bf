"""Write files whole or not at all, even if two programs write the same file, and never over something else."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from reid.errors import ConfigError, DataError

Writer = Callable[[Path], object]
PARTIAL_FOLDER = ".reid-partial"  # beside the files that are being written; it holds one folder for each writer
_WRITER_FOLDER = re.compile("[0-9a-f]{16}")
FileKey = tuple[int, int] | tuple[str, str]
"""Device and number of a file, or folder and name where there is no file."""


def write_whole(path: Path, write: Writer, *, private: bool = True) -> None:
    """Write a file so that it appears whole or not at all.

    The new file takes the place of an older one when it is complete and on the disk.  If ``write`` raises, an older
    file stays as it was.  Missing folders are created.

    Args:
        path: The file.
        write: Fills the new file, whose path it gets.
        private: Only the owner may read the file, because it shows people or is derived from images of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writer_folder(path.parent) as own:
        part = own / path.name
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
        write(part)
        if private:
            part.chmod(0o600)  # a library may have put a file of its own there
        sync(part)
        part.replace(path)
        sync(path.parent)


def write_together(paths: Sequence[Path], write: Callable[[Path], object]) -> None:
    """Write files of one folder that belong together, so that no new file ever stands beside an old one.

    The first file is the one that the others belong to: an old one disappears before the others are replaced, and the
    new one appears after them.

    Args:
        paths: The files; all in the same folder.
        write: Writes files of these names into the folder that it gets.
    """
    parent = paths[0].parent
    parent.mkdir(parents=True, exist_ok=True)
    with writer_folder(parent) as own:
        write(own)
        for path in paths:
            sync(own / path.name)
        paths[0].unlink(missing_ok=True)
        for path in reversed(paths):
            (own / path.name).replace(path)
        sync(parent)


@contextmanager
def writer_folder(parent: Path) -> Iterator[Path]:
    """Make a private folder for what is being written, and remove it at the end of the ``with`` block.

    Libraries put temporary files of their own beside the file that they write, so these lie there as well.  The folder
    is locked: the next writer removes folders without a lock, because those who made them were killed.
    """
    remove_partial_files(parent)
    own, descriptor = _reserve_folder(parent / PARTIAL_FOLDER)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(descriptor)
        with suppress(OSError):  # another program writes there
            own.parent.rmdir()


def _reserve_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder with a new name in ``parent`` and lock it; return it and the descriptor that holds the lock."""
    attempts = 100  # another writer may remove the parent or the folder before it is locked
    while True:
        attempts -= 1
        own = parent / secrets.token_hex(8)
        try:
            parent.mkdir(mode=0o700, exist_ok=True)
            own.mkdir(mode=0o700)
            descriptor = os.open(own, os.O_RDONLY)
        except FileNotFoundError:
            if attempts and parent.parent.is_dir():
                continue
            raise
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if own.is_dir() or not attempts:
            return own, descriptor
        os.close(descriptor)


def remove_partial_files(parent: Path) -> list[Path]:
    """Remove what killed programs left in a folder while they wrote, but nothing that is being written.

    Args:
        parent: The folder.

    Returns:
        What could not be removed.
    """
    folder, remaining = parent / PARTIAL_FOLDER, []
    try:
        entries = [Path(entry) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    for entry in filter(lambda entry: _WRITER_FOLDER.fullmatch(entry.name), entries):
        try:
            with locked(entry, wait=False):
                shutil.rmtree(entry)
        except (BlockingIOError, FileNotFoundError):
            continue  # it is being written, or just was
        except OSError:
            remaining.append(entry)
    with suppress(OSError):
        folder.rmdir()
    return remaining


def is_part(path: Path) -> bool:
    """Return whether a file or folder is what a program leaves behind that was killed while it wrote.

    Example:
        >>> is_part(Path(".reid-partial")), is_part(Path(".scores.json.1f6d2c07.part"))  # the second: version 0.1.0
        (True, True)
    """
    return path.name == PARTIAL_FOLDER or (path.name.startswith(".") and path.name.endswith(".part"))


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file or folder while the ``with`` block runs.

    Args:
        path: The file or folder.  A missing file is created; a folder must exist.
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


def file_keys(paths: Iterable[Path]) -> dict[Path, FileKey]:
    """Tell files from names: paths of the same file have the same key.

    Links, hard links, "..", and relative and absolute names are recognised.  A path without a file has a key as well,
    by its name.

    Args:
        paths: The paths.

    Returns:
        The key of each path.

    Example:
        >>> one, other = file_keys([Path("a/b/../1.jpg"), Path("a/1.jpg")]).values()
        >>> one == other
        True
    """
    folders: dict[str, str] = {}
    keys: dict[Path, FileKey] = {}
    for path in paths:
        if path in keys:
            continue
        try:
            status = path.stat()
        except (OSError, ValueError):
            status = None
        if status is not None and status.st_ino:
            keys[path] = (status.st_dev, status.st_ino)
            continue
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        keys[path] = (folders[folder], name)
    return keys


def require_regular_file(path: Path, what: str) -> None:
    """Refuse a pipe, a socket or a device before it is opened, because reading one may wait for ever.

    A path that does not exist, a file and a folder are left to the caller.

    Args:
        path: The path.
        what: What the file should be, for the message.

    Raises:
        DataError: It is something else.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{path}: expected a {what}, got a pipe, socket or device; give the path of a file")


def check_output_file(out: Path, mark: str, inputs: Sequence[str] | None = None) -> None:
    """Refuse to write a file where it would destroy something else.

    Commands call this before they begin to work.

    Args:
        out: The file that the command will write.
        mark: Text that the first bytes of every such file hold.  Only such a file may be replaced.
        inputs: What the command reads, which it must not replace.

    Raises:
        ConfigError: ``out`` exists and is something else, or no file can be written there.
    """
    prepare_output_folder(out.parent, out)
    if not out.exists():
        if out.is_symlink():
            raise ConfigError(
                f"{out}: is a link that leads nowhere; it would be lost, so choose another name or delete it"
            )
        return
    if not out.is_file():
        raise ConfigError(f"{out}: expected a file to write, this is a folder or device; choose another name")
    with out.open("rb") as file:
        start = file.read(2**20)  # the header of a file with many cameras is long
    given = {Path(spec).resolve() for spec in inputs or ()}
    if out.resolve() in given or (start and mark.encode() not in start):
        raise ConfigError(f"{out}: exists and is something else; it would be lost, so choose another name or delete it")


def prepare_output_folder(folder: Path, out: Path | None = None) -> Path:
    """Check that files can be written in a folder, which need not exist yet.

    A missing folder is not made, so that a command that fails later leaves no empty one behind; what writes files makes
    the folders that they need.

    Args:
        folder: The folder.
        out: The file that the command will write there, for the message; None names the folder.

    Returns:
        The folder.

    Raises:
        ConfigError: No file can be written in it.
    """
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
        TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise ConfigError(
            f"{out or folder}: no file can be written there ({error.strerror or error}); choose another place"
        ) from error
    return folder


def make_output_folder(folder: Path, mode: int = 0o777) -> Path:
    """Make a folder for files that stay there whatever the command finds, unless it is there already.

    Args:
        folder: The folder.
        mode: Who may use it.

    Returns:
        The folder.

    Raises:
        ConfigError: It cannot be made, or no file can be written in it.
    """
    prepare_output_folder(folder)
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    return folder


@contextmanager
def folder_for_files(folder: Path, mode: int = 0o777) -> Iterator[None]:
    """Make a folder, and remove it at the end of the ``with`` block if no file was put into it.

    Folders above it that are missing are made and removed with it.

    Args:
        folder: The folder.
        mode: Who may use it.

    Raises:
        OSError: It cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # it holds something
                path.rmdir()
