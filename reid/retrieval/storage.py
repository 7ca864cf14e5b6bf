"""Gallery folders on disk: private, and written as a whole or not at all.

A gallery folder holds ``header.json`` and data files; the header lists their names and checksums, and has a checksum of
its own. New data files are written beside the old ones. They take effect when the header is replaced, which the file
system does at once or not at all, and then the old files are removed. A program that is stopped at any moment therefore
leaves the old gallery or the new one.

Readers remove nothing. Writers check the gallery first, and after they have written they remove the files that a
gallery writes and that the header does not list: those of the old gallery, and those of programs that were killed.
Files with other names are never touched.

Embeddings of people are biometric data, so folders have the mode 0700 and files 0600.
"""

from __future__ import annotations

import errno
import hashlib
import re
import secrets
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from reid.errors import GalleryError, WeightsError
from reid.files import PARTIAL_FOLDER, Writer, locked, remove_partial_files, sync, write_whole
from reid.retrieval.gallery_header import (
    DATA_NAME,
    FORMAT,
    HEADER,
    REBUILD,
    VERSION,
    encode_header,
    header_bytes,
    header_if_readable,
    read_header,
)
from reid.retrieval.sample_table import first_line
from reid.retrieval.tombstones import TOMBSTONES_FILE, Tombstones, read_tombstones

QUERIES_FILE = "queries.safetensors"  # the embeddings of queries, which the application keeps in the gallery's folder

_OWN_SUFFIXES = frozenset({"index", "samples", "network.safetensors"})
# What version 0.1.0 left behind when it was killed: parts of our files, and temporary files of safetensors.
_OLD_PART = re.compile(r"\.(header\.json|queries\.safetensors|data-[0-9a-f]{16}\.[\w.-]+)\.[0-9a-f]{8}\.part")
_SAFETENSORS_PART = re.compile(r"\.tmp[0-9A-Za-z]{6}")
_OWN_MARK = b'"reid-'  # the format in the header of our safetensors files begins so


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
        folder: The folder; it is made if it is missing.

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
        tombstones: The erased identities of the folder.
    """

    folder: Path
    header: dict[str, Any] | None
    tombstones: Tombstones
    swept: int = 0  # how many files were removed
    _suffixes: set[str] = field(default_factory=lambda: set(_OWN_SUFFIXES))

    def checked_files(self) -> dict[str, Path]:
        """Check all data files of the gallery and return them by their suffixes.

        Raises:
            GalleryError: There is no gallery, or one of its files is damaged or missing.
        """
        return _checked_files(self.folder, read_header(self.folder))

    def commit(self, writers: Mapping[str, Writer], facts: Mapping[str, Any], keep: Collection[str] = ()) -> None:
        """Write data files and a header that lists them; the gallery stays as it was if that fails.

        Args:
            writers: The writer of each new data file, by the suffix of its name.
            facts: Further entries of the header.
            keep: The suffixes of old data files that the new header lists as well.

        Raises:
            OSError: A file cannot be written.
        """
        generation = secrets.token_hex(8)
        files: dict[str, Any] = {}
        self._suffixes |= {*writers, *(self.header or {"files": ()})["files"]}
        written: list[Path] = []
        try:
            self.folder.chmod(0o700)
            for suffix in keep:
                files[suffix] = self._kept(suffix, self.folder / f"data-{generation}.{suffix}", written)
            for suffix, write in writers.items():
                path = self.folder / f"data-{generation}.{suffix}"
                written.append(path)
                write_private(path, write)
                files[suffix] = {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
            header = {"format": FORMAT, "version": VERSION, "generation": generation, **facts, "files": files}
            text = encode_header(header)
            write_private(self.folder / HEADER, lambda part: part.write_text(text, encoding="utf-8"))
        except BaseException:
            if generation.encode() not in header_bytes(self.folder):  # else the new header already counts
                for path in written:
                    path.unlink(missing_ok=True)
            raise
        self.header = header

    def _kept(self, suffix: str, path: Path, written: list[Path]) -> dict[str, Any]:
        """Give an old data file a second name, without a copy; return its entry in the new header."""
        entry: dict[str, Any] = dict((self.header or {})["files"][suffix])
        try:
            path.hardlink_to(self.folder / entry["name"])
        except OSError:  # a file system without hard links: it keeps its name
            return entry
        written.append(path)
        return {**entry, "name": path.name}

    def sweep(self) -> list[str]:
        """Remove the files that a gallery writes and that its header does not list.

        Returns:
            One line for each file that could not be removed.
        """
        if self.header is None:
            return []
        used = {entry["name"] for entry in self.header["files"].values()}
        remaining = []
        for path in sorted(self.folder.iterdir()):
            if path.name not in used and _is_leftover(path, self._suffixes):
                try:
                    path.unlink()
                    self.swept += 1
                except OSError as error:
                    remaining.append(f"{path}: cannot be removed ({error.strerror or error})")
        remaining += [f"{path}: cannot be removed" for path in remove_partial_files(self.folder)]
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
        GalleryError: The folder cannot be written to, holds files of something else or holds another generation.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder):
            if replaces is None:
                _check_replaceable(folder)
            header = header_if_readable(folder) if replaces is None else read_header(folder)
            if replaces is not None and header is not None and header["generation"] != replaces:
                raise GalleryError(f"{folder}: the gallery was changed by another program; open it again, then repeat")
            yield GalleryWriter(folder, header, read_tombstones(folder))
    except OSError as error:
        raise GalleryError(
            f"{folder}: the gallery cannot be written ({error.strerror or error}); choose another folder or free some"
            " space"
        ) from error


def write_gallery_folder(folder: Path, writers: Mapping[str, Writer], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write a new gallery and remove the old one.

    Args:
        folder: The folder of the gallery; it is made if it is missing.
        writers: The writer of each data file, by the suffix of its name.
        facts: Further entries of the header.

    Returns:
        The header of the new gallery.

    Raises:
        GalleryError: The folder cannot be written to, or holds files of something else.
    """
    with write_gallery(folder) as writer:
        writer.commit(writers, facts)
        writer.sweep()  # the next writer removes what remains
    return dict(writer.header or {})


@contextmanager
def open_gallery_folder(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Path]]]:
    """Check the files of a gallery and keep them in place during the ``with`` block; nothing is changed or removed.

    Args:
        folder: The folder of the gallery.

    Yields:
        The header, and the data files by the suffix of their names.

    Raises:
        GalleryError: The gallery is missing, incomplete or damaged, or it cannot be read.
    """
    if not folder.is_dir():
        raise GalleryError(f'{folder}: no gallery there; build one with "reid index build"')
    try:
        with locked(folder, shared=True):
            header = read_header(folder)
            yield header, _checked_files(folder, header)
    except OSError as error:
        raise GalleryError(f"{folder}: the gallery cannot be read ({error.strerror or error})") from error


def check_gallery(folder: Path) -> None:
    """Check that a folder holds a gallery, without reading its vectors.

    Raises:
        GalleryError: The folder is missing or holds no gallery, or the header of the gallery is damaged.
    """
    if not folder.is_dir():
        raise GalleryError(f'{folder}: no gallery there; build one with "reid index build"')
    try:
        with locked(folder, shared=True):
            read_header(folder)
    except OSError as error:
        raise GalleryError(f"{folder}: the gallery cannot be read ({error.strerror or error})") from error


def stamp_of(folder: Path) -> tuple[object, ...]:
    """Return a value that changes when the gallery, its queries or its erased identities are written anew."""
    return tuple(_stamp(folder / name) for name in (HEADER, TOMBSTONES_FILE, QUERIES_FILE))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _checked_files(folder: Path, header: Mapping[str, Any]) -> dict[str, Path]:
    return {suffix: _checked(folder, entry) for suffix, entry in header["files"].items()}


def _checked(folder: Path, entry: Mapping[str, Any]) -> Path:
    path = folder / str(entry["name"])
    if not path.is_file():
        raise GalleryError(f"{folder}: the gallery is damaged, {path.name} is missing; {REBUILD}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise GalleryError(
            f"{folder}: the gallery is damaged, {path.name} has {size} bytes instead of {entry['bytes']}; {REBUILD}"
        )
    if _sha256(path) != entry["sha256"]:
        raise GalleryError(f"{folder}: the gallery is damaged, {path.name} has other contents; {REBUILD}")
    return path


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds no gallery but files of something else."""
    if FORMAT.encode() in header_bytes(folder):
        return
    own = {HEADER, QUERIES_FILE, TOMBSTONES_FILE, PARTIAL_FOLDER}
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


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
