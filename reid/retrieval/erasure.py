"""Erase an identity from a gallery and from all that the program derived from the same data.

An erasure reaches the index and the samples of the gallery, the embeddings of queries in the same folder, and the other
galleries that the application keeps beside it. Every folder gets a tombstone first, which hides the rows from that
moment on; so a program that is stopped half-way leaves rows that answer nothing, and the next writer removes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reid.errors import DataError, GalleryError, ReidError
from reid.retrieval.embed import load_embeddings
from reid.retrieval.gallery import read_rows
from reid.retrieval.gallery_header import HEADER
from reid.retrieval.query_file import count_queries, erase_queries
from reid.retrieval.sample_table import decode_samples
from reid.retrieval.storage import QUERIES_FILE, open_gallery_folder, write_gallery
from reid.retrieval.tombstones import TOMBSTONES_FILE, Tombstones, read_tombstones, write_tombstones

# The folders of the galleries that the application keeps side by side, all of them derived from the same data.
APPLICATION_GALLERIES = ("street", "street-plain", "street-small-camera", "street-small-plain")
MARGIN = 2**18  # bytes of free space for the header, the tombstones and blocks that are not full


@dataclass(frozen=True)
class ErasedRows:
    """What an erasure did to a gallery or to a file of queries.

    Args:
        path: The folder of the gallery, or the file.
        rows: How many rows were removed; None where a damaged file was removed as a whole.
        remaining: One line for each file that still holds erased rows, because it could not be changed or removed.
        generation: The generation of the gallery after the erasure; None for a file.
        finished: Whether there was no row left, but files of an earlier erasure, which are now removed.
    """

    path: Path
    rows: int | None
    remaining: tuple[str, ...] = ()
    generation: str | None = None
    finished: bool = False


def erase_identity(
    folder: Path, identity: str, category: str | None = None, *, replaces: str | None = None
) -> tuple[ErasedRows, ...]:
    """Erase an identity from a gallery folder and from what the application derived from the same data.

    Args:
        folder: The folder of the gallery.
        identity: The identity.
        category: Erase it in this category only; None erases it in every category.
        replaces: The generation that the caller knows; None accepts any.

    Returns:
        One value for the gallery, then one for each other gallery or file of queries that was changed or should have
        been. Nothing is written where no row shows the identity and it was not erased before.

    Raises:
        GalleryError: The gallery is missing or damaged, cannot be written to, or holds another generation; or the disk
            has too little room, and then nothing was erased.
    """
    only = Tombstones().with_identity(identity, category)
    derived = _galleries_beside(folder)
    with open_gallery_folder(folder) as (header, _):
        generation = str(header["generation"])
    found = sum(_count_rows(one, only) for one in (folder, *derived))
    if not found and not read_tombstones(folder).holds(identity, category):
        return (ErasedRows(folder, 0, generation=generation),)
    for one in (folder, *derived):
        _check_room(one, only)
    erased = _erase_in_folder(folder, identity, category, replaces)
    for one in derived:
        try:
            erased += _erase_in_folder(one, identity, category, None)
        except ReidError as error:
            erased += [ErasedRows(one, 0, (str(error),))]
    return tuple(erased)


def lift_erasure(folder: Path, identity: str, category: str | None = None) -> tuple[Path, ...]:
    """Allow an erased identity to come back when galleries are built again.

    Args:
        folder: The folder of the gallery.
        identity: The identity.
        category: Lift the erasure in this category only; None lifts all erasures of the identity.

    Returns:
        The folders in which it had been erased.

    Raises:
        GalleryError: A folder cannot be written to, or its list of erased identities is damaged.
    """
    lifted = []
    for one in (folder, *_application_folders(folder)):
        if not (one / TOMBSTONES_FILE).exists():
            continue
        with write_gallery(one) as writer:
            left = writer.tombstones.without_identity(identity, category)
            if left.erased != writer.tombstones.erased:
                write_tombstones(one, left)
                lifted.append(one)
    return tuple(lifted)


def _erase_in_folder(folder: Path, identity: str, category: str | None, replaces: str | None) -> list[ErasedRows]:
    with write_gallery(folder, replaces) as writer:
        files = writer.checked_files()
        header = writer.header or {}
        rows = read_rows(folder, header, files)
        tombstones = writer.tombstones.with_identity(identity, category)
        gone = tombstones.hidden(rows.samples)
        with _tombstones_written(folder, tombstones, writer.tombstones):
            if gone.any():
                kept = rows.select(~gone)
                facts = {key: value for key, value in header.items() if key not in _WRITTEN_ANEW}
                others = [suffix for suffix in files if suffix not in kept.writers()]
                writer.commit(kept.writers(), {**facts, **kept.facts(header["fingerprint"])}, keep=others)
        removed, problems = erase_queries(folder, tombstones)
        problems += writer.sweep()
    generation, finished = str((writer.header or {})["generation"]), bool(writer.swept) and not gone.any()
    erased = [ErasedRows(folder, int(gone.sum()), tuple(problems), generation, finished)]
    return [*erased, ErasedRows(folder / QUERIES_FILE, removed)] if removed != 0 else erased


_WRITTEN_ANEW = ("format", "version", "generation", "files")


@contextmanager
def _tombstones_written(folder: Path, tombstones: Tombstones, before: Tombstones) -> Iterator[None]:
    """Write the tombstones first, and put the old ones back if the ``with`` block fails to write the gallery."""
    try:
        write_tombstones(folder, tombstones)
        yield
    except OSError:
        with suppress(OSError):
            write_tombstones(folder, before)
        raise


def _application_folders(folder: Path) -> list[Path]:
    """Return the other folders beside a gallery of the application that may hold its galleries."""
    name = folder.resolve().name
    if name not in APPLICATION_GALLERIES:
        return []
    parent = folder.parent if folder.name == name else folder.resolve().parent
    return [parent / other for other in APPLICATION_GALLERIES if other != name]


def _galleries_beside(folder: Path) -> list[Path]:
    """Return the application's other galleries that share images with this one; a damaged one may do so as well."""
    own = _paths_in(folder)
    beside = [one for one in _application_folders(folder) if (one / HEADER).exists()]
    return [one for one in beside if (paths := _paths_in(one)) is None or not own or not own.isdisjoint(paths)]


def _paths_in(folder: Path) -> set[Path] | None:
    """Return the paths of all images in a gallery and its file of queries; None where nothing can be read."""
    paths: set[Path] = set()
    try:
        with open_gallery_folder(folder) as (_, files):
            paths |= {sample.path for sample in decode_samples(files["samples"].read_bytes(), files["samples"])}
        paths |= {sample.path for sample in load_embeddings(folder / QUERIES_FILE).samples}
    except (ReidError, KeyError):
        pass
    return paths or None


def _count_rows(folder: Path, tombstones: Tombstones) -> int:
    """Count the rows of a gallery and its file of queries that some tombstones hide; 0 where it is damaged."""
    try:
        with open_gallery_folder(folder) as (_, files):
            samples = decode_samples(files["samples"].read_bytes(), files["samples"])
            return int(tombstones.hidden(samples).sum()) + count_queries(folder, tombstones)
    except (DataError, GalleryError, KeyError):
        return 0


def _check_room(folder: Path, tombstones: Tombstones) -> None:
    """Refuse to begin where the disk has no room for the new files, which are written before the old ones go."""
    if not _count_rows(folder, tombstones):
        return
    with open_gallery_folder(folder) as (_, files):
        written = [files["index"], files["samples"]]
    if (folder / QUERIES_FILE).exists():
        written.append(folder / QUERIES_FILE)
    needed = sum(path.stat().st_size for path in written) + MARGIN
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise GalleryError(
            f"{folder}: erasing takes {needed / 1e6:.1f} MB of free space until the old files are removed,"
            f" {free / 1e6:.1f} MB are free; nothing was erased; free some space, then repeat"
        )
