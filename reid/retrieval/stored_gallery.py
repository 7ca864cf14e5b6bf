"""The rows of a gallery folder, and the changes that a writer makes to them.

Every change makes new facts for the header: rows are appended as a segment, removed rows are listed beside their
segment, and compaction writes segments anew without them. Nothing counts before the writer commits the facts.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reid.errors import GalleryError
from reid.files import Writer
from reid.records import FloatArray, IntArray
from reid.retrieval.folder_reading import read_gallery_folder
from reid.retrieval.gallery_header import (
    DELETED,
    INDEX,
    OLD_INDEX,
    OLD_SAMPLES,
    VECTORS,
    facts_of,
    read_header,
)
from reid.retrieval.old_gallery import read_old_segment
from reid.retrieval.row_table import ID, RowTable
from reid.retrieval.segment_writing import merged_segment, write_segment
from reid.retrieval.segments import GallerySegment, parts_of_rows, read_segment
from reid.retrieval.storage import NETWORK_SUFFIX, SITE_SUFFIX, GalleryWriter
from reid.retrieval.tombstones import Tombstones, read_tombstones

MOST_SEGMENTS = 32  # more are merged when rows are added
LARGEST_SEGMENT, MOST_PARTS = 2**17, 16  # rows of a compacted segment, unless that would make more parts than this
SMALL = 32  # a segment with less than this fraction of all rows is small

Facts = dict[str, Any]


@dataclass(frozen=True)
class StoredGallery:
    """What a gallery folder held when it was read.

    Args:
        folder: The folder.
        generation: The generation of the header.
        facts: What the header says of the gallery, as version 2 says it.
        segments: The segments, in the order of their rows.
        tombstones: What was erased from the folder.
    """

    folder: Path
    generation: str
    facts: Facts
    segments: tuple[GallerySegment, ...]
    tombstones: Tombstones

    def whole_table(self) -> RowTable:
        """Return the rows that were not removed; some of them may be erased, but not removed yet."""
        return RowTable.concatenated([segment.kept_table() for segment in self.segments] or [empty_table()])

    def kept_table(self) -> RowTable:
        """Return the rows that were neither removed nor erased."""
        table = self.whole_table()
        hidden = self.hidden(table)
        return table.take(np.flatnonzero(~hidden)) if hidden.any() else table

    def hidden(self, table: RowTable) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return (N,) bool: the rows of a table that were erased, even if the program was stopped meanwhile."""
        hidden = self.tombstones.hidden_rows(table)
        if self.tombstones.pending == self.generation:
            paths = table.column("path").to_pylist()
            hidden |= np.array([self.tombstones.holds_path(path) for path in paths], np.bool_)
        return hidden


def empty_table() -> RowTable:
    """Return a table without rows."""
    return RowTable.from_samples(())


def read_gallery(folder: Path, known: Iterable[GallerySegment] = ()) -> StoredGallery:
    """Read the rows of a gallery folder; vectors are mapped into memory and checked when they are used.

    Args:
        folder: The folder.
        known: Segments that were read before; those that are still in the folder are not read again.

    Raises:
        GalleryError: The gallery is missing, incomplete or damaged.
    """
    by_name = {vectors_name(segment.entry): segment for segment in known if segment.entry is not None}

    def read(header: Facts) -> StoredGallery:
        if header["version"] == 1:
            segments: tuple[GallerySegment, ...] = (read_old_segment(folder, header),)
        else:
            segments = tuple(
                read_segment(folder, entry, header["dimension"], by_name.get(vectors_name(entry)))
                for entry in header["segments"]
            )
        return StoredGallery(folder, header["generation"], facts_of_version_2(header), segments, Tombstones())

    stored = read_gallery_folder(folder, read)
    # The tombstones are read last: an erasure writes them before it changes the rows.
    return replace(stored, tombstones=read_tombstones(folder))


def vectors_name(entry: Mapping[str, Any]) -> str:
    """Return the name of the file of a segment's vectors, which no other segment ever has."""
    return str(entry["files"][VECTORS]["name"])


def facts_of_version_2(header: Mapping[str, Any]) -> Facts:
    """Return what a header says, as version 2 says it."""
    facts = facts_of(header)
    if header["version"] == 1:
        files = {suffix: entry for suffix, entry in header["files"].items() if suffix not in (OLD_INDEX, OLD_SAMPLES)}
        facts |= {"files": files, "segments": [], "next_id": header["count"], "lineage": header["generation"]}
    return facts


def new_facts(fingerprint: str, dimension: int, first_id: int = 0) -> Facts:
    """Return the facts of a new gallery without rows."""
    return {
        "fingerprint": fingerprint,
        "dimension": dimension,
        "count": 0,
        "next_id": first_id,
        "lineage": secrets.token_hex(8),  # tells a gallery that was built again from one that has changed
        "segments": [],
        "files": {},
    }


def under_lock(writer: GalleryWriter, known: Iterable[GallerySegment] = ()) -> StoredGallery:
    """Read the gallery that a writer has locked; the rows of a gallery of version 1 are written as a segment.

    Raises:
        GalleryError: The gallery is missing or damaged.
        OSError: A file cannot be written.
    """
    stored = read_gallery(writer.folder, known)
    if read_header(writer.folder)["version"] > 1:
        return stored
    (old,) = stored.segments
    files = {suffix: writer.rename_data(suffix, entry) for suffix, entry in stored.facts["files"].items()}
    facts = with_rows(writer, {**stored.facts, "files": files}, old.table, [old.vectors], keep_ids=True)
    return replace(stored, facts=facts)


def with_files(writer: GalleryWriter, facts: Facts, attach: Mapping[str, Writer]) -> Facts:
    """Write files that belong to the gallery as a whole, by the suffixes of their names.

    A new network takes the place of the old one and of the crops of its cameras.
    """
    written = {suffix: writer.write_data(suffix, write) for suffix, write in attach.items()}
    old = {
        suffix: entry
        for suffix, entry in facts["files"].items()
        if suffix != SITE_SUFFIX or NETWORK_SUFFIX not in attach
    }
    return {**facts, "files": {**old, **written}}


def with_rows(
    writer: GalleryWriter,
    facts: Facts,
    table: RowTable,
    parts: Sequence[FloatArray],
    *,
    keep_ids: bool = False,
    thumbnails: Sequence[bytes] | None = None,
) -> Facts:
    """Write rows as a new segment at the end.

    Args:
        writer: The writer.
        facts: The facts of the gallery.
        table: The rows (N,).
        parts: Their vectors (M, D) float32, in several arrays.
        keep_ids: Whether the rows keep the ids of the table, and are counted already.
        thumbnails: A small JPEG image of each row, b"" for none.

    Raises:
        OSError: A file cannot be written.
    """
    rows = len(table)
    if not rows:
        return facts
    if not keep_ids:
        table = table.with_column(ID, np.arange(facts["next_id"], facts["next_id"] + rows))
    entry = write_segment(writer, table, lambda: iter(parts), facts["dimension"], thumbnails)
    return {
        **facts,
        "segments": [*facts["segments"], entry],
        "count": facts["count"] + (0 if keep_ids else rows),
        "next_id": max(facts["next_id"], int(table.row_ids[-1]) + 1),
    }


def without_rows(writer: GalleryWriter, stored: StoredGallery, row_ids: IntArray) -> tuple[Facts, int]:
    """Hide rows; they stay in the files of their segments until these are compacted.

    Args:
        writer: The writer.
        stored: The gallery.
        row_ids: (K,) int64, the ids of the rows; ids that are not there are passed over.

    Returns:
        The facts, and how many rows there were.

    Raises:
        OSError: A file cannot be written.
    """
    row_ids = np.unique(row_ids)
    entries, removed = [], 0
    for entry, segment in zip(stored.facts["segments"], stored.segments, strict=True):
        positions = np.flatnonzero(np.isin(segment.table.row_ids, row_ids, assume_unique=True))
        positions = np.setdiff1d(positions, segment.deleted, assume_unique=True)
        removed += len(positions)
        deleted = np.sort(np.concatenate([segment.deleted, positions]))
        entries += [_with_deleted(writer, entry, deleted)] if len(positions) else [entry]
    entries = [entry for entry in entries if entry is not None]
    return {**stored.facts, "segments": entries, "count": stored.facts["count"] - removed}, removed


def _with_deleted(writer: GalleryWriter, entry: Facts, deleted: IntArray) -> Facts | None:
    if len(deleted) == entry["rows"]:
        return None  # the whole segment goes

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, deleted)

    return {**entry, "files": {**entry["files"], DELETED: writer.write_data(DELETED, write)}}


def compacted(writer: GalleryWriter, stored: StoredGallery, *, everything: bool) -> Facts:
    """Write segments anew without their removed rows.

    Args:
        writer: The writer.
        stored: The gallery, without changes that are not committed.
        everything: Merge all segments to one, or to a few where there are very many rows, so that a later erasure
            writes a part of them anew. Otherwise only segments with removed rows are written anew, each by itself.

    Raises:
        GalleryError: A file is damaged; nothing is written.
        OSError: A file cannot be written.
    """
    hidden = [stored.hidden(segment.table) for segment in stored.segments]
    kept = [s.kept[~h[s.kept]] for s, h in zip(stored.segments, hidden, strict=True)]
    dirty = [len(rows) < len(segment.table) for segment, rows in zip(stored.segments, kept, strict=True)]
    pairs = list(zip(stored.segments, kept, strict=True))
    count = sum(len(rows) for rows in kept)
    size = max(LARGEST_SEGMENT, -(-count // MOST_PARTS))
    if everything and (len(pairs) > -(-count // size) or any(dirty)):
        entries = [merged_segment(writer, part, stored.facts["dimension"]) for part in parts_of_rows(pairs, size)]
    else:
        entries = [
            merged_segment(writer, [pair], stored.facts["dimension"]) if is_dirty else entry
            for pair, is_dirty, entry in zip(pairs, dirty, stored.facts["segments"], strict=True)
            if len(pair[1])
        ]
    facts = without_index(stored.facts) if any(dirty) else stored.facts
    return {**facts, "segments": entries, "count": count}


def without_index(facts: Facts) -> Facts:
    """Return the facts of a gallery without its approximate index, which holds its rows as well."""
    files = {suffix: entry for suffix, entry in facts["files"].items() if suffix != INDEX}
    return {**{key: value for key, value in facts.items() if key != "index"}, "files": files}


def with_few_segments(writer: GalleryWriter, stored: StoredGallery) -> Facts:
    """Merge neighbouring small segments where there are too many; adding rows then costs little on average."""
    entries = stored.facts["segments"]
    if len(entries) <= MOST_SEGMENTS:
        return stored.facts
    limit = sum(len(segment.table) for segment in stored.segments) // SMALL
    merged: list[Facts] = []
    run: list[int] = []
    for position, segment in enumerate([*stored.segments, None]):
        if segment is not None and len(segment.table) <= limit:
            run.append(position)
            continue
        if len(run) > 1:
            parts = [stored.segments[one] for one in run]
            merged.append(merged_segment(writer, [(part, part.kept) for part in parts], stored.facts["dimension"]))
        else:
            merged += [entries[one] for one in run]
        run = []
        if segment is not None:
            merged.append(entries[position])
    return {**stored.facts, "segments": merged}


def fits(stored: StoredGallery, generation: str | None) -> None:
    """Check that a gallery is still the one that a caller knows.

    Raises:
        GalleryError: Another program has changed it.
    """
    if generation is not None and stored.generation != generation:
        raise GalleryError(f"{stored.folder}: the gallery was changed by another program; open it again, then repeat")
