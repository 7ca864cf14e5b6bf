"""Add rows to a gallery: those that are there already are passed over, and only new images are embedded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from reid.errors import DataError, GalleryError
from reid.files import Writer
from reid.records import Embeddings, IntArray, Sample
from reid.retrieval.filters import BoolArray, ColumnCondition
from reid.retrieval.gallery_rows import GalleryRows
from reid.retrieval.kept_cohorts import commit_cohorts
from reid.retrieval.row_table import CONTENT, FIELDS, FILE_TIME, RowTable
from reid.retrieval.segments import GallerySegment
from reid.retrieval.storage import GalleryWriter, write_gallery
from reid.retrieval.stored_gallery import (
    StoredGallery,
    read_gallery,
    under_lock,
    with_few_segments,
    with_files,
    with_rows,
    without_rows,
)
from reid.retrieval.thumbnails import thumbnails_of

ROWS_AT_ONCE = 2000  # that are embedded before they are written, so that a stopped program loses no more
Embed = Callable[[Sequence[Sample]], Embeddings]


@dataclass(frozen=True)
class AddedRows:
    """What became of the rows that were to be added.

    Args:
        added: How many are new in the gallery.
        known: How many were there already.
        replaced: How many of the added ones took the place of a row whose image or labels had changed.
        barred: How many were left out because their identity or image was erased, or because they are too old.
        decisions: How many decisions about persons came with them.
    """

    added: int = 0
    known: int = 0
    replaced: int = 0
    barred: int = 0
    decisions: int = 0

    def __add__(self, other: AddedRows) -> AddedRows:
        return AddedRows(
            self.added + other.added,
            self.known + other.known,
            self.replaced + other.replaced,
            self.barred + other.barred,
            self.decisions + other.decisions,
        )


@dataclass(frozen=True)
class _Plan:
    """Which of some samples (K,) are new, and the id of the row that each of them replaces, -1 for none."""

    new: IntArray
    replaced: IntArray
    counts: AddedRows


def add_in_memory(
    rows: GalleryRows, fingerprint: str, embeddings: Embeddings, more: Mapping[str, Sequence[object]] | None
) -> tuple[GalleryRows, AddedRows]:
    """Return the rows of a gallery in memory with further ones, and what became of these.

    Raises:
        GalleryError: Another network made the embeddings, or the vectors have another length.
    """
    check_network(embeddings, fingerprint, rows.dimension, "the gallery in memory")
    new = np.flatnonzero(_positions(rows.table, embeddings.samples) < 0)
    new = new[_first_of_path(embeddings.samples, new)]
    counts = AddedRows(len(new), len(embeddings) - len(new))
    if not len(new):
        return rows, counts
    first = 1 + max((int(segment.table.row_ids[-1]) for segment in rows.segments if len(segment.table)), default=-1)
    part = embeddings.select(new)
    table = RowTable.from_samples(part.samples, first, _selected(more, new))
    segment = GallerySegment(table, np.zeros(0, np.int64), None, part.vectors)
    whole = RowTable.concatenated([rows.table, table])
    return GalleryRows(whole, [*rows.segments, segment], rows.dimension), counts


def add_to_folder(
    folder: Path,
    embeddings: Embeddings,
    more: Mapping[str, Sequence[object]] | None = None,
    *,
    known: Iterable[GallerySegment] = (),
    thumbnails: Sequence[bytes] | None = None,
) -> AddedRows:
    """Add embeddings to a gallery folder.

    Args:
        folder: The folder.
        embeddings: The new rows.
        more: Further columns by their names, one value for each embedding.
        known: Segments that were read before.
        thumbnails: A small JPEG image for each embedding, b"" for none.

    Returns:
        What became of the rows.

    Raises:
        GalleryError: Another network made the embeddings, the gallery is damaged, or the folder cannot be written to.
    """
    with write_gallery(folder) as writer:
        stored = under_lock(writer, known)
        check_network(embeddings, stored.facts["fingerprint"], stored.facts["dimension"], str(folder))
        plan = _plan(stored, embeddings.samples, more)
        part, columns = embeddings.select(plan.new), _selected(more, plan.new)
        images = thumbnails and [thumbnails[i] for i in plan.new.tolist()]
        commit_cohorts(writer, _append(writer, stored, part, columns, plan.replaced, images))
        writer.sweep()
    return plan.counts


def add_samples(
    folder: Path,
    samples: Sequence[Sample],
    embed: Embed,
    more: Mapping[str, Sequence[object]] | None = None,
    *,
    attach: Mapping[str, Writer] | None = None,
    fingerprint: str | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    with_thumbnails: bool = False,
) -> AddedRows:
    """Embed the samples that a gallery does not have yet, and add them.

    The rows are written some thousand at a time, so a program that is stopped goes on where it was. A row whose image
    or labels have changed since it was added is replaced.

    Args:
        folder: The folder of the gallery, which stays locked meanwhile; readers go on.
        samples: The samples.
        embed: Embeds some samples.
        more: Further columns by their names, one value for each sample.
        attach: Writers of files that take the place of those of the gallery, such as a network with more cameras.
        fingerprint: The fingerprint of the gallery from now on; None keeps the one that it has.
        rows_at_once: How many rows are embedded before they are written.
        with_thumbnails: Whether a small JPEG image of each new row is kept with it.

    Returns:
        What became of the rows.

    Raises:
        DataError: An image cannot be read.
        GalleryError: The gallery is damaged, or the folder cannot be written to.
    """
    with write_gallery(folder) as writer:
        stored = under_lock(writer)
        files = {**(more or {}), **_files_of(samples, stored.kept_table())}
        plan = _plan(stored, samples, files)
        if attach or fingerprint:
            facts = with_files(writer, stored.facts, attach or {})
            writer.commit({**facts, "fingerprint": fingerprint or facts["fingerprint"]})
            stored = read_gallery(folder, stored.segments)
        for start in range(0, len(plan.new), rows_at_once):
            part = slice(start, start + rows_at_once)
            new = plan.new[part]
            embeddings = embed([samples[i] for i in new.tolist()])
            check_network(embeddings, stored.facts["fingerprint"], stored.facts["dimension"], str(folder))
            images = thumbnails_of(samples[i] for i in new.tolist()) if with_thumbnails else None
            stored = _append(writer, stored, embeddings, _selected(files, new), plan.replaced[part], images)
        commit_cohorts(writer, stored)
        writer.sweep()
    return plan.counts


def _append(
    writer: GalleryWriter,
    stored: StoredGallery,
    embeddings: Embeddings,
    more: Mapping[str, Sequence[object]] | None,
    replaced: IntArray,
    thumbnails: Sequence[bytes] | None = None,
) -> StoredGallery:
    """Commit new rows without those that they replace (ids, or -1); return the gallery as it is then."""
    if not len(embeddings):
        return stored
    facts, _ = without_rows(writer, stored, replaced[replaced >= 0])
    table = RowTable.from_samples(embeddings.samples, more=more)
    writer.commit(with_rows(writer, facts, table, [embeddings.vectors], thumbnails=thumbnails))
    now = read_gallery(writer.folder, stored.segments)
    facts = with_few_segments(writer, now)
    if facts["segments"] == now.facts["segments"]:
        return now
    writer.commit(facts)
    return read_gallery(writer.folder, now.segments)


def _plan(stored: StoredGallery, samples: Sequence[Sample], more: Mapping[str, Sequence[object]] | None) -> _Plan:
    """Find out which samples are new, changed, there already or not allowed."""
    table = stored.kept_table()
    allowed = ~stored.tombstones.barred(samples) & ~too_old(stored.facts, RowTable.from_samples(samples))
    positions = _positions(table, samples)
    there = np.flatnonzero(allowed & (positions >= 0))
    differs = _differs(table, positions[there], samples, there, more)
    new = np.sort(np.concatenate([np.flatnonzero(allowed & (positions < 0)), there[differs]]))
    new = new[_first_of_path(samples, new)]
    replaced = np.full(len(new), -1, np.int64)
    changed = positions[new] >= 0
    replaced[changed] = table.row_ids[positions[new][changed]]
    barred = int(np.count_nonzero(~allowed))
    counts = AddedRows(len(new), len(samples) - barred - len(new), int(np.count_nonzero(changed)), barred)
    return _Plan(new, replaced, counts)


def _positions(table: RowTable, samples: Sequence[Sample]) -> IntArray:
    """Return for each sample (N,) the row with the same image, -1 where there is none.

    A path is compared as it is written, as an absolute path, and relative to the working directory.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = np.full(len(samples), -1, np.int64)
    owners: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        written = str(sample.path)
        for text in dict.fromkeys((written, os.path.abspath(written), os.path.relpath(written))):  # noqa: PTH100
            owners.setdefault(text, []).append(position)
    if not owners or not len(table):
        return rows
    # The few new paths are hashed and the many known ones looked up; the other way round takes twenty times as long.
    spelled = pa.array(list(owners), pa.string())
    found = pc.index_in(table.column("path"), value_set=spelled).fill_null(-1).to_numpy()
    positions = list(owners.values())
    for row in np.flatnonzero(found >= 0)[::-1].tolist():  # the first row of a path is the one that stays
        rows[positions[found[row]]] = row
    return rows


def _first_of_path(samples: Sequence[Sample], rows: IntArray) -> BoolArray:
    """Return (K,) bool: which of some samples are the first ones of their paths."""
    seen: set[str] = set()
    first = np.zeros(len(rows), np.bool_)
    for position, row in enumerate(rows.tolist()):
        path = os.path.abspath(samples[row].path)  # noqa: PTH100 (resolving asks the disk for every file)
        first[position] = path not in seen
        seen.add(path)
    return first


def _differs(
    table: RowTable,
    rows: IntArray,
    samples: Sequence[Sample],
    which: IntArray,
    more: Mapping[str, Sequence[object]] | None,
) -> BoolArray:
    """Return (K,) bool: whether the labels or the image of a sample differ from those of its row (K,)."""
    columns = more or {}
    if not len(rows):
        return np.zeros(0, np.bool_)
    part = table.take(rows)
    old_samples = part.samples_at(np.arange(len(rows)))
    names = [name for name in columns if name not in (CONTENT, FILE_TIME)]
    old = {name: part.arrow.column(name).to_pylist() for name in names if name in part.arrow.column_names}
    contents = part.arrow.column(CONTENT).to_pylist() if CONTENT in part.arrow.column_names else [None] * len(rows)
    differs = []
    for position, (row, sample) in enumerate(zip(which.tolist(), old_samples, strict=True)):
        new = samples[row]
        labels = any(getattr(new, name) != getattr(sample, name) for name in FIELDS if name != "path")
        further = any((old[name][position] or "") != (columns[name][row] or "") for name in old)
        content = columns[CONTENT][row] if CONTENT in columns else None
        image = contents[position] is not None and content is not None and contents[position] != content
        differs.append(labels or further or image)
    return np.array(differs, np.bool_)


def _files_of(samples: Sequence[Sample], table: RowTable) -> dict[str, Sequence[object]]:
    """Return the hash of the content of each file, and when it was changed.

    A file that has not changed since its row was added is not read again.
    """
    contents: list[object] = []
    times: list[object] = []
    positions = _positions(table, samples)
    known = {name: [None] * len(samples) for name in (CONTENT, FILE_TIME)}
    there = np.flatnonzero(positions >= 0)
    for name in (name for name in known if name in table.arrow.column_names):
        for row, value in zip(there.tolist(), table.arrow.column(name).take(positions[there]).to_pylist(), strict=True):
            known[name][row] = value
    for row, sample in enumerate(samples):
        try:
            time = sample.path.stat().st_mtime_ns
            content = known[CONTENT][row] if known[FILE_TIME][row] == time else _content_of(sample.path)
        except OSError as error:
            raise DataError(f"{sample.path}: cannot be read ({error.strerror or error})") from error
        contents.append(content)
        times.append(time)
    return {CONTENT: contents, FILE_TIME: times}


def _content_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def _selected(more: Mapping[str, Sequence[object]] | None, rows: IntArray) -> dict[str, Sequence[object]]:
    return {name: [values[i] for i in rows.tolist()] for name, values in (more or {}).items()}


def too_old(facts: Mapping[str, Any], table: RowTable) -> BoolArray:
    """Return (N,) bool: the rows that are older than the gallery keeps rows; an unknown time is never too old."""
    from reid.retrieval.filters import rows_where

    limit = oldest_time(facts)
    return (
        np.zeros(len(table), np.bool_) if limit is None else rows_where(ColumnCondition("time", "<", (limit,)), table)
    )


def oldest_time(facts: Mapping[str, Any]) -> str | None:
    """Return the time before which a gallery keeps no rows; None where it keeps all."""
    days = facts.get("retention_days")
    return None if days is None else (datetime.now(UTC) - timedelta(days=days)).isoformat()


def check_network(embeddings: Embeddings, fingerprint: str, dimension: int, where: str) -> None:
    """Raise GalleryError unless embeddings come from the network of a gallery; ``where`` names the gallery."""
    if embeddings.fingerprint != fingerprint:
        raise GalleryError(
            f'{where}: the new rows were embedded by "{embeddings.fingerprint}", the gallery by "{fingerprint}"; their'
            " scores mean nothing together: embed them with the gallery's own network and profiles"
        )
    if embeddings.vectors.shape[1] != dimension:
        raise GalleryError(
            f"{where}: expected vectors of length {dimension}, got {embeddings.vectors.shape[1]}; embed with the"
            " gallery's own network"
        )
