"""How the files of a segment are written: vectors, rows, and for some segments short codes and thumbnails."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from reid.records import FloatArray, IntArray
from reid.retrieval.gallery_header import CODES, ROWS, THUMBNAILS, VECTORS
from reid.retrieval.numpy_files import flat_values
from reid.retrieval.row_table import RowTable
from reid.retrieval.segments import GallerySegment, fold, write_vectors
from reid.retrieval.storage import GalleryWriter
from reid.retrieval.stores.row_codes import map_codes, write_codes
from reid.retrieval.stores.row_numbers import camera_order
from reid.retrieval.thumbnails import write_thumbnails

FEWEST_CODED = 4096  # rows of a segment whose codes are kept in a file; those of fewer are made in a moment
ROWS_AT_ONCE = 2**16  # whose vectors are copied at a time while segments are merged
IMAGES_AT_ONCE = 1024

Facts = dict[str, Any]


def write_segment(
    writer: GalleryWriter,
    table: RowTable,
    parts: Callable[[], Iterator[FloatArray]],
    dimension: int,
    thumbnails: Sequence[bytes] | None = None,
) -> Facts:
    """Write rows as a new segment.

    Args:
        writer: The writer of the gallery.
        table: The rows (N,).
        parts: Yields their vectors (M, D) float32.
        dimension: The length D of a vector.
        thumbnails: An image for each row, b"" for none; None where the segment has no thumbnails.

    Returns:
        The entry for the header.

    Raises:
        OSError: A file cannot be written.
    """
    entry = _write_vectors(writer, table, parts, dimension)
    if thumbnails is None or not any(thumbnails):
        return entry
    sizes = np.array([len(image) for image in thumbnails], np.int64)
    checks = np.array([zlib.crc32(image) for image in thumbnails], np.int64)
    written = writer.write_data(THUMBNAILS, lambda path: write_thumbnails(path, [thumbnails], sizes, checks))
    return {**entry, "files": {**entry["files"], THUMBNAILS: written}}


def merged_segment(writer: GalleryWriter, pairs: Sequence[tuple[GallerySegment, IntArray]], dimension: int) -> Facts:
    """Write some rows (K,) of several segments as one segment.

    Raises:
        GalleryError: A file is damaged.
        OSError: A file cannot be written.
    """
    table = RowTable.concatenated([segment.table.take(rows) for segment, rows in pairs])

    def parts() -> Iterator[FloatArray]:
        for segment, rows in pairs:
            vectors = segment.vectors
            for start in range(0, len(rows), ROWS_AT_ONCE):
                yield vectors[rows[start : start + ROWS_AT_ONCE]]

    entry = _write_vectors(writer, table, parts, dimension)
    if all(segment.thumbnails is None for segment, _ in pairs):
        return entry

    def images() -> Iterator[Sequence[bytes]]:
        for segment, rows in pairs:
            for start in range(0, len(rows), IMAGES_AT_ONCE):
                yield segment.thumbnails_at(rows[start : start + IMAGES_AT_ONCE])

    sizes = np.concatenate([segment.thumbnail_sizes(rows) for segment, rows in pairs])
    checks = np.array([zlib.crc32(image) for part in images() for image in part], np.int64)
    written = writer.write_data(THUMBNAILS, lambda path: write_thumbnails(path, images(), sizes, checks))
    return {**entry, "files": {**entry["files"], THUMBNAILS: written}}


def _write_vectors(
    writer: GalleryWriter, table: RowTable, parts: Callable[[], Iterator[FloatArray]], dimension: int
) -> Facts:
    vectors = writer.write_data(VECTORS, lambda path: write_vectors(path, parts(), len(table), dimension))
    written = flat_values(writer.folder / vectors["name"], "<f4").reshape(-1, dimension)
    vectors["fold"] = fold(written)
    files = {VECTORS: vectors, ROWS: writer.write_data(ROWS, table.write)}
    return {"rows": len(table), "files": {**files, **_write_codes(writer, table, written)}}


def _write_codes(writer: GalleryWriter, table: RowTable, vectors: FloatArray) -> Facts:
    """Write the short codes of a large segment, its rows by camera, so that a filter by camera reads a few runs."""
    if len(table) < FEWEST_CODED:
        return {}
    bounds: dict[str, float] = {}
    entry = writer.write_data(CODES, lambda path: bounds.update(write_codes(path, vectors, camera_order(table))))
    return {
        CODES: {**entry, "bounds": bounds, "fold": fold(map_codes(writer.folder / entry["name"], vectors.shape[1]))}
    }
