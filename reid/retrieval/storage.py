"""Gallery folders on disk: private, and changed as a whole or not at all.

A gallery folder holds ``header.json`` and data files; the header lists their names and checksums, and has a checksum of
its own. Data files are written once and never changed. New ones take effect when the header is replaced, which the file
system does at once or not at all, and then the files that it no longer lists are removed. A program that is stopped at
any moment therefore leaves the gallery before the change or after it.

One program writes at a time; the lock of the folder keeps others out. Readers need no lock: what they have opened stays
as it is, and where a file is gone before they have opened it, they start again with the new header. Readers remove
nothing. Writers remove, after they have written, the files that a gallery writes and that the header does not list:
those of the gallery before, and those of programs that were killed. Files with other names are never touched.

Embeddings of people are biometric data, so folders have the mode 0700 and files 0600.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from reid.errors import GalleryError, WeightsError
from reid.files import PARTIAL_FOLDER, Writer, folder_for_files, locked, remove_partial_files, sync, write_whole
from reid.retrieval.gallery_header import (
    CODES,
    DATA_NAME,
    DELETED,
    FORMAT,
    HEADER,
    INDEX,
    OLD_INDEX,
    OLD_SAMPLES,
    ROWS,
    THUMBNAILS,
    VECTORS,
    VERSION,
    encode_header,
    header_bytes,
    header_if_readable,
    listed_files,
    read_header,
)
from reid.retrieval.persons.person_files import DECISIONS_FILE, PERSONS
from reid.retrieval.receipts import RECEIPTS_FILE, log_receipt, receipts_path, write_receipt
from reid.retrieval.row_table import first_line
from reid.retrieval.segments import sha256_of
from reid.retrieval.stores.milvus_client import is_milvus_uri, whole_uri
from reid.retrieval.tombstones import TOMBSTONES_FILE, Tombstones, read_tombstones

QUERIES_FILE = "queries.safetensors"  # the embeddings of queries, which the application keeps in the gallery's folder

WAIT = 2.0  # seconds that a writer waits for another one
NETWORK_SUFFIX = "network.safetensors"

COHORTS_SUFFIX = "cohorts.safetensors"  # statistics of the rows toward each camera, derived from the vectors
SITE_SUFFIX = "site.safetensors"  # embeddings of crops of the cameras, from the profiles of the network

_OWN_SUFFIXES = frozenset((
    OLD_INDEX, OLD_SAMPLES, VECTORS, ROWS, DELETED, CODES, THUMBNAILS, NETWORK_SUFFIX, PERSONS, INDEX,
    COHORTS_SUFFIX, SITE_SUFFIX,
))  # fmt: skip
# What version 0.1.0 left behind when it was killed: parts of our files, and temporary files of safetensors.
_OLD_PART = re.compile(r"\.(header\.json|queries\.safetensors|data-[0-9a-f]{16}\.[\w.-]+)\.[0-9a-f]{8}\.part")
_SAFETENSORS_PART = re.compile(r"\.tmp[0-9A-Za-z]{6}")
_OWN_MARK = b'"reid-'  # the format in the header of our safetensors files begins so
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)  # where flock does not work


def write_private(path: Path, write: Writer) -> None:
    """Write a private file with :func:`reid.files.write_whole`; every failure to write is an OSError.

    Args:
        path: The file.
        write: Writes to the path that it is called with, by any library.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    try:
        write_whole(path, write)
    except (SafetensorError, RuntimeError) as error:  # what safetensors and faiss raise
        raise OSError(errno.EIO, first_line(error), str(path)) from error
    except WeightsError as error:  # raised by the writer of a network that is kept beside the vectors
        raise OSError(errno.EIO, first_line(error.__cause__ or error), str(path)) from error


def check_gallery_folder(folder: Path) -> None:
    """Check that a gallery can be written to a folder, before the work of building it begins.

    Args:
        folder: The folder; it may be missing.

    Raises:
        GalleryError: The folder cannot be written to, or it holds files of something else.
    """
    with write_gallery(folder):
        TemporaryFile(dir=folder).close()


@dataclass
class GalleryWriter:
    """The locked folder of a gallery that is written; :func:`write_gallery` makes one.

    Args:
        folder: The folder.
        header: The header of the gallery that it holds; None where there is none that can be read.
        tombstones: The erased rows of the folder.
    """

    folder: Path
    header: dict[str, Any] | None
    tombstones: Tombstones
    swept: int = 0  # how many files were removed
    _suffixes: set[str] = field(default_factory=lambda: set(_OWN_SUFFIXES))
    _written: list[Path] = field(default_factory=list)

    def write_data(self, suffix: str, write: Writer) -> dict[str, Any]:
        """Write a data file, which counts as soon as a header lists it.

        Args:
            suffix: The suffix of its name.
            write: Fills the file.

        Returns:
            The entry for the header.

        Raises:
            OSError: The file cannot be written.
        """
        self.folder.chmod(0o700)
        path = self.folder / f"data-{secrets.token_hex(8)}.{suffix}"
        self._suffixes.add(suffix)
        self._written.append(path)
        write_private(path, write)
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}

    def rename_data(self, suffix: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Give a data file a second name, without a copy; return its new entry for the header."""
        path = self.folder / f"data-{secrets.token_hex(8)}.{suffix}"
        self._suffixes.add(suffix)
        self._written.append(path)
        try:
            path.hardlink_to(self.folder / entry["name"])
        except OSError:  # a file system without hard links: it keeps its name
            return dict(entry)
        return {**entry, "name": path.name}

    def commit(self, facts: Mapping[str, Any]) -> None:
        """Replace the header; from then on the gallery is what it says.

        Args:
            facts: The entries of the header.

        Raises:
            OSError: The header cannot be written; then the gallery stays as it was.
        """
        self._suffixes |= set((self.header or {"files": ()})["files"])
        receipt = (self.header or {}).get("receipt")
        if receipt != facts.get("receipt"):  # the new header replaces it
            write_receipt(self.folder, receipt)
        header = {"format": FORMAT, "version": VERSION, "generation": secrets.token_hex(8), **facts}
        text = encode_header(header)
        write_private(self.folder / HEADER, lambda part: part.write_text(text, encoding="utf-8"))
        self.header = header
        self._written.clear()

    def discard(self) -> None:
        """Remove the data files that were written and are in no header."""
        for path in self._written:
            if path.name.encode() not in header_bytes(self.folder):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        self._written.clear()

    def sweep(self) -> list[str]:
        """Remove the files that a gallery writes and that its header does not list, and log the receipt of the header.

        Returns:
            One line for each file that could not be removed.
        """
        if self.header is None:
            return []
        used = {entry["name"] for entry in listed_files(self.header)}
        remaining = []
        for path in sorted(self.folder.iterdir()):
            if path.name not in used and _is_leftover(path, self._suffixes):
                try:
                    path.unlink()
                    self.swept += 1
                except OSError as error:
                    remaining.append(f"{path}: cannot be removed ({error.strerror or error})")
        remaining += [f"{path}: cannot be removed" for path in remove_partial_files(self.folder)]
        log_receipt(self.folder, self.header.get("receipt"))
        with suppress(OSError):
            sync(self.folder)
        return remaining


@contextmanager
def write_gallery(folder: Path, replaces: str | None = None) -> Iterator[GalleryWriter]:
    """Lock the folder of a gallery for writing during the ``with`` block.

    Args:
        folder: The folder of the gallery; it is made if it is missing.
        replaces: The generation that the new one is derived from. If the folder holds another one by now, nothing is
            written, because that would undo a change by another program. None replaces any generation.

    Yields:
        The writer.

    Raises:
        GalleryError: The folder cannot be written to, is being written by another program, holds files of something
            else or holds another generation.
    """
    _refuse_milvus(folder)
    try:
        with folder_for_files(folder, 0o700), _write_lock(folder):
            if replaces is None:
                _check_replaceable(folder)
            receipts_path(folder)  # checked before anything is erased
            header = header_if_readable(folder) if replaces is None else read_header(folder)
            if replaces is not None and header is not None and header["generation"] != replaces:
                raise GalleryError(f"{folder}: the gallery was changed by another program; open it again, then repeat")
            writer = GalleryWriter(folder, header, read_tombstones(folder))
            try:
                yield writer
            finally:
                writer.discard()
    except OSError as error:
        raise GalleryError(
            f"{folder}: the gallery cannot be written ({error.strerror or error}); choose another folder or free some"
            " space"
        ) from error


def _check_writable(folder: Path) -> None:
    """Refuse a folder whose owner made it read-only; its mode holds for root as well, who could write to it."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & 0o222 or not os.access(folder, os.W_OK | os.X_OK):
        raise GalleryError(
            f"{folder}: the folder is read-only for you (mode {mode:04o}); make it writable or choose another one"
        )


@contextmanager
def _write_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; wait a moment for another writer, which may be about to finish.

    Raises:
        GalleryError: Another program is still writing, the folder is read-only, or the file system has no locks.
    """
    _check_writable(folder)
    end = time.monotonic() + WAIT
    while True:
        lock = locked(folder, wait=False)
        try:
            lock.__enter__()
            break
        except BlockingIOError:
            if time.monotonic() >= end:
                raise GalleryError(
                    f"{folder}: another program is writing to this gallery; wait until it has finished, then repeat"
                ) from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise GalleryError(
                    f"{folder}: this file system has no locks ({error.strerror}), so two programs could write at the"
                    " same time; put the gallery on a local disk, or mount the network share with locks"
                ) from error
            raise
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def check_gallery(folder: Path) -> None:
    """Check that a folder holds a gallery, without reading its vectors.

    Raises:
        GalleryError: The folder is missing or holds no gallery, or the header of the gallery is damaged.
    """
    _refuse_milvus(folder)
    read_header(folder)


def _refuse_milvus(folder: Path) -> None:
    """Raise GalleryError where a place is the address of a gallery in Milvus, for work that needs a folder."""
    if is_milvus_uri(str(folder)):
        raise GalleryError(
            f"{whole_uri(str(folder))}: this needs a gallery in a folder; on Milvus work reid search and reid index"
            " create, add, list, info, search, remove, erase, compact and verify"
        )


def stamp_of(folder: Path) -> tuple[object, ...]:
    """Return a value that changes when the gallery, its queries or its erased identities are written anew."""
    return tuple(_stamp(folder / name) for name in (HEADER, TOMBSTONES_FILE, QUERIES_FILE))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds no gallery but files of something else."""
    if FORMAT.encode() in header_bytes(folder):
        return
    own = {HEADER, QUERIES_FILE, TOMBSTONES_FILE, RECEIPTS_FILE, DECISIONS_FILE, PARTIAL_FOLDER}
    if (folder / HEADER).exists() and DATA_NAME.search(header_bytes(folder).decode("latin-1")) is None:
        own.remove(HEADER)
    foreign = [path.name for path in folder.iterdir() if path.name not in own and not _is_leftover(path, _OWN_SUFFIXES)]
    if foreign:
        raise GalleryError(f'{folder}: holds "{min(foreign)}" and is no gallery; choose an empty folder')


def _is_leftover(path: Path, suffixes: Collection[str]) -> bool:
    """Whether a path is a file that writing a gallery leaves behind when the program is killed."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    data = DATA_NAME.fullmatch(path.name)
    if data is not None:
        return data[1] in suffixes
    if _SAFETENSORS_PART.fullmatch(path.name):
        with path.open("rb") as stream:
            start = stream.read(2**20)
        return not start or _OWN_MARK in start
    return _OLD_PART.fullmatch(path.name) is not None
