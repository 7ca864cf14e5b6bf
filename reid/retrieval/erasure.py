"""Erase rows from a gallery and from all that the program derived from the same data.

An erasure reaches the vectors and rows of the gallery, the embeddings of queries in the same folder, and the other
galleries that the application keeps beside it. Every folder gets a tombstone first, which hides the rows from that
moment on; so a program that is stopped half-way leaves rows that answer nothing, and the next writer removes them.

Erasing an identity also writes the affected segments anew, so that its bytes are gone at once. Removing rows by any
other filter leaves the bytes in the files until the gallery is compacted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reid.errors import DataError, GalleryError, ReidError
from reid.files import remove_partial_files
from reid.records import FloatArray, IntArray, Sample
from reid.retrieval.application_galleries import application_folders, galleries_beside
from reid.retrieval.embed import load_embeddings
from reid.retrieval.filters import BoolArray, Filter, columns_of, rows_where
from reid.retrieval.gallery_header import read_header
from reid.retrieval.kept_cohorts import with_cohorts
from reid.retrieval.kept_site import without_crops
from reid.retrieval.persons.person_files import erased_crops, forget_crops
from reid.retrieval.query_file import erase_queries
from reid.retrieval.receipts import log_receipt, new_receipt
from reid.retrieval.row_table import RowTable
from reid.retrieval.segments import GallerySegment
from reid.retrieval.storage import QUERIES_FILE, GalleryWriter, write_gallery
from reid.retrieval.stored_gallery import StoredGallery, compacted, read_gallery, under_lock, without_rows
from reid.retrieval.tombstones import TOMBSTONES_FILE, Tombstones, rows_of_identity, write_tombstones

# The folders of the galleries that the application keeps side by side, all of them derived from the same data.
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


@dataclass(frozen=True)
class _Erasure:
    """What is erased: an identity, or the rows that a filter selects."""

    identity: str = ""
    category: str | None = None
    where: Filter | None = None
    identities: tuple[str, ...] = ()  # that the filter selects, and nothing else
    forget: bool = True  # keep the same rows out later
    compact: bool = True  # remove the bytes at once
    receipt: dict[str, Any] = field(default_factory=dict)

    def rows(self, table: RowTable) -> BoolArray:
        """Return (N,) bool: the rows of a table that are erased; none where it lacks a column of the filter."""
        if self.where is None:
            return rows_of_identity(table, self.identity, self.category)
        if not {name.lower() for name in columns_of(self.where)} <= {*table.column_names, "domain"}:
            return np.zeros(len(table), np.bool_)
        return rows_where(self.where, table)

    def queries(self, samples: Sequence[Sample]) -> BoolArray:
        """Return (N,) bool: the queries that are erased."""
        return self.rows(RowTable.from_samples(samples))

    def tombstones(self, before: Tombstones, tables: Sequence[RowTable], generation: str) -> Tombstones:
        """Return the tombstones of a folder after the erasure of some rows of its tables: the gallery, the queries."""
        if self.where is None:
            return before.with_identity(self.identity, self.category)
        if not self.forget:
            return before
        if self.identities:
            for name in self.identities:
                before = before.with_identity(name)
            return before
        parts = [table.take(np.flatnonzero(self.rows(table))).column("path").to_pylist() for table in tables]
        paths = [path for part in parts for path in part]
        return before.with_paths(paths, generation if parts[0] else before.pending) if paths else before


def erase_identity(
    folder: Path,
    identity: str,
    category: str | None = None,
    *,
    replaces: str | None = None,
    known: Sequence[GallerySegment] = (),
) -> tuple[ErasedRows, ...]:
    """Erase an identity from a gallery folder and from what the application derived from the same data.

    Args:
        folder: The folder of the gallery.
        identity: The identity.
        category: Erase it in this category only; None erases it in every category.
        replaces: The generation that the caller knows; None accepts any.
        known: Segments that were read before.

    Returns:
        One value for the gallery, then one for each other gallery or file of queries that was changed or should have
        been. Nothing is written where no row shows the identity and it was not erased before.

    Raises:
        GalleryError: The gallery is missing or damaged, cannot be written to, or holds another generation; or the disk
            has too little room, and then nothing was erased.
    """
    erasure = _Erasure(identity, category, receipt={"action": "erase", "by": ["identity"]})
    return _erase(folder, erasure, replaces, known)


def erase_rows(
    folder: Path,
    where: Filter,
    *,
    forget: bool = True,
    identities: Sequence[str] = (),
    action: str = "remove",
    known: Sequence[GallerySegment] = (),
) -> tuple[ErasedRows, ...]:
    """Remove the rows that a filter selects, from a gallery folder and from what was derived from the same data.

    They answer no search from then on; their bytes are removed when the gallery is compacted.

    Args:
        folder: The folder of the gallery.
        where: The filter.
        forget: Keep the same images out when rows are added or the gallery is built again.
        identities: The identities that the filter selects, where it selects nothing else; they are then kept out by
            their names, other images of them as well.
        action: The word for the receipt.
        known: Segments that were read before.

    Returns:
        As :func:`erase_identity`.

    Raises:
        DataError: The filter names an unknown column.
        GalleryError: As :func:`erase_identity`.
    """
    stored = read_gallery(folder, known)
    rows_where(where, stored.kept_table())
    names = sorted(columns_of(where))
    receipt = {"action": action, "by": names}
    erasure = _Erasure(where=where, identities=tuple(identities), forget=forget, compact=False, receipt=receipt)
    return _erase(folder, erasure, None, stored.segments)


def _erase(
    folder: Path, erasure: _Erasure, replaces: str | None, known: Sequence[GallerySegment]
) -> tuple[ErasedRows, ...]:
    stored = read_gallery(folder, known)  # a damaged gallery is an error
    derived = galleries_beside(folder)
    segments = {folder: stored.segments} | {one: _segments_of(one) for one in derived}
    found = sum(_count_rows(one, parts, erasure) for one, parts in segments.items())
    erased_before = erasure.where is None and stored.tombstones.holds(erasure.identity, erasure.category)
    if not found and not erased_before:
        return (ErasedRows(folder, 0, generation=stored.generation, finished=_sweep_after(folder, erasure)),)
    for one, parts in segments.items():
        _check_room(one, parts, erasure)
    erased = _erase_in_folder(folder, erasure, replaces, stored.segments)
    for one in derived:
        try:
            erased += _erase_in_folder(one, erasure, None, segments[one])
        except ReidError as error:
            erased += [ErasedRows(one, 0, (str(error),))]
    return tuple(erased)


def _segments_of(folder: Path) -> tuple[GallerySegment, ...]:
    """Return the segments of a gallery; none where it is damaged."""
    try:
        return read_gallery(folder).segments
    except ReidError:
        return ()


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
    return _lift(folder, lambda tombstones: tombstones.without_identity(identity, category))


def lift_removal(folder: Path, paths: Sequence[Path] | None = None) -> tuple[Path, ...]:
    """Allow images that were removed by path, camera, time or another filter to come back when they are added again.

    Args:
        folder: The folder of the gallery.
        paths: The images; None lifts the removal of all.

    Returns:
        The folders from which one of them had been removed.

    Raises:
        GalleryError: A folder cannot be written to, or its list of erased identities is damaged.
    """
    return _lift(folder, lambda tombstones: tombstones.without_paths(paths))


def _lift(folder: Path, change: Callable[[Tombstones], Tombstones]) -> tuple[Path, ...]:
    """Change the tombstones of a gallery and of those beside it; return the folders in which something changed."""
    lifted = []
    for one in (folder, *application_folders(folder)):
        remove_partial_files(one)  # of a restoring that was killed
        if not (one / TOMBSTONES_FILE).exists():
            continue
        with write_gallery(one) as writer:
            left = change(writer.tombstones)
            if left != writer.tombstones:
                write_tombstones(one, left)
                lifted.append(one)
    return tuple(lifted)


def _erase_in_folder(
    folder: Path, erasure: _Erasure, replaces: str | None, known: Sequence[GallerySegment]
) -> list[ErasedRows]:
    with write_gallery(folder, replaces) as writer:
        stored = under_lock(writer, known)
        table = stored.whole_table()
        tables = [table, *_queries_of(folder)]
        tombstones = erasure.tombstones(writer.tombstones, tables, stored.generation)
        gone = erasure.rows(table) | stored.hidden(table) | tombstones.hidden_rows(table)
        with _tombstones_written(folder, tombstones, writer.tombstones):
            facts, removed_rows = without_rows(writer, stored, table.row_ids[gone])
            files = forget_crops(writer, stored.facts["files"], erased_crops(table, gone))
            files = without_crops(writer, files, _vectors_of(stored, table.row_ids[gone]))
            receipt = new_receipt({**erasure.receipt, "rows": removed_rows})
            if removed_rows:
                writer.commit(with_cohorts(writer, {**facts, "files": files, "receipt": receipt}, stored))
        if erasure.compact:
            _remove_bytes(writer, stored)
        removed, problems = erase_queries(folder, tombstones, erasure.queries)
        problems += writer.sweep()
        finished = bool(writer.swept) and not removed_rows
        if not removed_rows and (finished or removed != 0):
            log_receipt(folder, {**receipt, "queries": removed})
    generation = str((writer.header or {})["generation"])
    erased = [ErasedRows(folder, removed_rows, tuple(problems), generation, finished)]
    return [*erased, ErasedRows(folder / QUERIES_FILE, removed)] if removed != 0 else erased


def _vectors_of(stored: StoredGallery, row_ids: IntArray) -> FloatArray:
    """Return the vectors (E, D) of the rows with some ids."""
    parts = [s.vectors[np.isin(s.table.row_ids, row_ids)] for s in stored.segments]
    return np.concatenate([np.zeros((0, int(stored.facts["dimension"])), np.float32), *parts])


def _queries_of(folder: Path) -> list[RowTable]:
    """Return the rows of the file of queries; none where there is no such file or it is damaged."""
    try:
        return [RowTable.from_samples(load_embeddings(folder / QUERIES_FILE).samples)]
    except DataError:
        return []


def _sweep_after(folder: Path, erasure: _Erasure) -> bool:
    """Remove what an erasure has left that was stopped at its very end; return whether there was something."""
    if erasure.where is None:
        return False
    with write_gallery(folder) as writer:
        writer.sweep()
    return bool(writer.swept)


def _remove_bytes(writer: GalleryWriter, before: StoredGallery) -> None:
    """Write the segments that hold removed rows anew."""
    stored = read_gallery(writer.folder, before.segments)
    if read_header(writer.folder)["version"] == 1:  # nothing was removed
        return
    facts = compacted(writer, stored, everything=False)
    if facts["segments"] != stored.facts["segments"]:
        writer.commit(with_cohorts(writer, facts, stored))


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


def _table_of(segment: GallerySegment, erasure: _Erasure) -> RowTable:
    """Return the rows that an erasure reaches; where it removes bytes, those that were removed before as well."""
    return segment.table if erasure.compact else segment.kept_table()


def _count_rows(folder: Path, segments: Sequence[GallerySegment], erasure: _Erasure) -> int:
    """Count the rows of some segments of a gallery and of its file of queries that are erased."""
    tables = [*(_table_of(segment, erasure) for segment in segments), *_queries_of(folder)]
    return sum(int(erasure.rows(table).sum()) for table in tables)


def _check_room(folder: Path, segments: Sequence[GallerySegment], erasure: _Erasure) -> None:
    """Refuse to begin where the disk has no room for the new files, which are written before the old ones go."""
    if not erasure.compact or not _count_rows(folder, segments, erasure):
        return
    dirty = [s for s in segments if len(s.kept) < len(s.table) or erasure.rows(s.table).any()]
    needed = MARGIN + sum(s.source.nbytes * 5 // 4 + s.table.arrow.nbytes for s in dirty)
    if (folder / QUERIES_FILE).exists():
        needed += (folder / QUERIES_FILE).stat().st_size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise GalleryError(
            f"{folder}: erasing takes {needed / 1e6:.1f} MB of free space until the old files are removed,"
            f" {free / 1e6:.1f} MB are free; nothing was erased; free some space, then repeat"
        )
