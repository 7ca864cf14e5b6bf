"""Segments: the parts of a gallery, each written once and never changed.

A segment has vectors in a NumPy file, which is mapped into memory and read where a search needs it, and a Parquet table
of its rows. Rows that were removed later stay in both until the gallery is compacted; a small file of their positions
hides them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, GalleryError
from reid.records import FloatArray, IntArray
from reid.retrieval.gallery_header import CODES, DELETED, REBUILD, ROWS, THUMBNAILS, VECTORS
from reid.retrieval.numpy_files import flat_values
from reid.retrieval.row_table import RowTable, first_line
from reid.retrieval.stores.row_codes import CodeSource, RowCodes, map_codes
from reid.retrieval.stores.row_numbers import camera_order
from reid.retrieval.thumbnails import Thumbnails

PAGE = 4096  # bytes; the quick checksum adds up pages word by word
BYTES_AT_ONCE = 2**24


@dataclass
class GallerySegment:
    """Some rows of a gallery.

    Args:
        table: All rows (N,), those that were removed as well.
        deleted: (M,) int64, the positions of removed rows, ascending.
        entry: What the header says of the segment; None where it is not in a folder of version 2.
        source: The vectors (N, D) float32, mapped into memory, of a file that is not checked yet, or in memory.
        path: The file of the vectors; None where they are in memory.
        codes: The short codes of the vectors, of a file that is not checked yet; None where there is none.
        thumbnails: The thumbnails; None where the segment has none.
    """

    table: RowTable
    deleted: IntArray
    entry: dict[str, Any] | None
    source: FloatArray
    path: Path | None = None
    codes: CodeSource | None = None
    thumbnails: Thumbnails | None = None
    _checked: bool = False
    _lock: Lock = field(default_factory=Lock)

    @property
    def vectors(self) -> FloatArray:
        """(N, D) float32; the quick checksum of a file is compared when they are used for the first time.

        Raises:
            GalleryError: The file holds something else than what was written.
        """
        with self._lock:
            if not self._checked and self.path is not None and self.entry is not None:
                written = self.entry["files"][VECTORS].get("fold")
                if written is not None and fold(self.source) != written:
                    raise damaged(self.path.parent, f"{self.path.name} has other contents")
            self._checked = True
        return self.source

    def code_source(self) -> CodeSource:
        """Return the short codes of the vectors; where no file has them, they are made when a search needs them."""
        with self._lock:
            if self.codes is None:
                self.codes = CodeSource(lambda: RowCodes.of(self.source, camera_order(self.table)))
            return self.codes

    def thumbnails_at(self, rows: IntArray) -> list[bytes]:
        """Return the thumbnails of some rows (K,); b"" where there is none.

        Raises:
            GalleryError: The file is damaged.
        """
        if self.thumbnails is None:
            return [b""] * len(rows)
        try:
            return self.thumbnails.images(rows)
        except DataError as error:
            raise GalleryError(f"{first_line(error)}; {REBUILD}") from error

    def thumbnail_sizes(self, rows: IntArray) -> IntArray:
        """Return the bytes (K,) of the thumbnails of some rows (K,)."""
        return np.zeros(len(rows), np.int64) if self.thumbnails is None else self.thumbnails.sizes(rows)

    @property
    def kept(self) -> IntArray:
        """(K,) int64, the positions of the rows that were not removed, ascending."""
        mask = np.ones(len(self.table), np.bool_)
        mask[self.deleted] = False
        return np.flatnonzero(mask)

    def kept_table(self) -> RowTable:
        """Return the rows that were not removed."""
        return self.table if not len(self.deleted) else self.table.take(self.kept)


def thumbnails_of_rows(segments: Sequence[GallerySegment], row_ids: IntArray) -> list[bytes]:
    """Return the thumbnails of the rows (K,) with some ids; b"" where there is none.

    Raises:
        GalleryError: A file is damaged.
    """
    images = [b""] * len(row_ids)
    for segment in (one for one in segments if one.thumbnails is not None):
        positions = np.searchsorted(segment.table.row_ids, row_ids)
        own = segment.table.row_ids[np.minimum(positions, len(segment.table) - 1)] == row_ids
        for place, image in zip(np.flatnonzero(own).tolist(), segment.thumbnails_at(positions[own]), strict=True):
            images[place] = image
    return images


def damaged(folder: Path, why: str) -> GalleryError:
    """Return the error of a gallery that is not what was written."""
    return GalleryError(f"{folder}: the gallery is damaged, {why}; {REBUILD}")


def checked_size(folder: Path, entry: Mapping[str, Any]) -> Path:
    """Return the path of a data file of the right size.

    Raises:
        GalleryError: It is missing or has another size.
    """
    path = folder / str(entry["name"])
    if not path.is_file():
        raise damaged(folder, f"{path.name} is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise damaged(folder, f"{path.name} has {size} bytes instead of {entry['bytes']}")
    return path


def checked_file(folder: Path, entry: Mapping[str, Any]) -> Path:
    """Return the path of a data file whose SHA-256 is right.

    Raises:
        GalleryError: It is missing or has other contents.
    """
    path = checked_size(folder, entry)
    if sha256_of(path) != entry["sha256"]:
        raise damaged(folder, f"{path.name} has other contents")
    return path


def read_segment(
    folder: Path, entry: dict[str, Any], dimension: int, known: GallerySegment | None = None
) -> GallerySegment:
    """Read a segment; the table and the deleted rows are checked, the vectors when they are used.

    Args:
        folder: The folder of the gallery.
        entry: What the header says of the segment.
        dimension: The length of a vector.
        known: The same segment as it was read before; then only the deleted rows are read.

    Raises:
        GalleryError: A file is damaged or missing.
    """
    files, rows = entry["files"], entry["rows"]
    deleted = np.zeros(0, np.int64)
    if DELETED in files:
        deleted = _positions_of(folder, files[DELETED])
    if known is not None:
        return GallerySegment(
            known.table, deleted, entry, known.source, known.path, known.codes, known.thumbnails, known._checked
        )
    table = _read_table(folder, files[ROWS])
    path = checked_size(folder, files[VECTORS])
    start = _numpy_header(rows, dimension)
    with path.open("rb") as stream:
        is_right = stream.read(len(start)) == start and files[VECTORS]["bytes"] == len(start) + 4 * rows * dimension
    if not is_right or len(table) != rows or not rows:
        raise damaged(folder, f"{path.name} does not hold {rows} x {dimension} vectors, or there are {len(table)} rows")
    vectors = np.memmap(path, np.float32, "r", len(start), (rows, dimension))
    codes = _codes_of(folder, files[CODES], table, dimension) if CODES in files else None
    thumbnails = _thumbnails_of(folder, files[THUMBNAILS], rows) if THUMBNAILS in files else None
    return GallerySegment(table, deleted, entry, vectors, path, codes, thumbnails)


def _positions_of(folder: Path, entry: Mapping[str, Any]) -> IntArray:
    """Return the positions (M,) that a file lists."""
    path = checked_file(folder, entry)
    try:
        return flat_values(path, "<i8").astype(np.int64)
    except ValueError as error:
        raise damaged(folder, f"{path.name} cannot be read ({first_line(error)})") from error


def _thumbnails_of(folder: Path, entry: Mapping[str, Any], rows: int) -> Thumbnails:
    path = checked_size(folder, entry)
    try:
        return Thumbnails(path, rows)
    except ValueError as error:
        raise damaged(folder, f"{path.name} cannot be read ({first_line(error)})") from error


def _codes_of(folder: Path, entry: Mapping[str, Any], table: RowTable, dimension: int) -> CodeSource:
    """Return the codes of a file, which is read and compared with its quick checksum when a search needs it."""
    path = checked_size(folder, entry)
    try:
        values = map_codes(path, dimension)  # now, because a later compaction removes the file
    except ValueError as error:
        raise damaged(folder, f"{path.name} cannot be read ({first_line(error)})") from error

    def read() -> RowCodes:
        if fold(values) != entry["fold"]:
            raise damaged(folder, f"{path.name} has other contents")
        try:
            return RowCodes.of_file(values, len(table), entry["bounds"], camera_order(table))
        except ValueError as error:
            raise damaged(folder, f"{path.name} cannot be read ({first_line(error)})") from error

    return CodeSource(read, is_stored=True)


def parts_of_rows(
    pairs: Sequence[tuple[GallerySegment, IntArray]], size: int
) -> Iterator[list[tuple[GallerySegment, IntArray]]]:
    """Yield some rows of segments in parts of ``size`` rows; the last one may have fewer."""
    part: list[tuple[GallerySegment, IntArray]] = []
    room = size
    for segment, whole in pairs:
        rows = whole
        while len(rows):
            part.append((segment, rows[:room]))
            rows, room = rows[room:], room - len(rows[:room])
            if not room:
                yield part
                part, room = [], size
    if part:
        yield part


def _read_table(folder: Path, entry: Mapping[str, Any]) -> RowTable:
    path = checked_file(folder, entry)
    try:
        return RowTable.read(path)
    except DataError as error:
        raise damaged(folder, first_line(error)) from error


def write_vectors(path: Path, parts: Iterable[FloatArray], rows: int, dimension: int) -> None:
    """Write vectors (N, D) float32 as a NumPy file, part by part, without a copy of all of them.

    Args:
        path: The file.
        parts: Arrays (M, D) float32; together they have ``rows`` rows.
        rows: The number N of rows.
        dimension: The length D of a vector.

    Raises:
        DataError: The parts have another number of rows.
    """
    written = 0
    with path.open("wb") as stream:
        stream.write(_numpy_header(rows, dimension))
        for part in parts:
            stream.write(np.ascontiguousarray(part, "<f4").data)
            written += len(part)
    if written != rows:
        raise DataError(f"{path.name}: {written} of {rows} vectors were written")


def _numpy_header(rows: int, dimension: int) -> bytes:
    """Return how a NumPy file of vectors (N, D) float32 begins."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimension)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def fold(vectors: npt.NDArray[Any]) -> str:
    """Return a quick checksum of vectors or codes in hex: SHA-256 of the sum of all pages of memory, word by word.

    Every change of one word changes it. It reads at the speed of the memory, several times faster than SHA-256.
    """
    flat = np.ascontiguousarray(vectors).reshape(-1).view(np.uint8)
    whole = len(flat) // PAGE * PAGE
    total = np.zeros(PAGE // 8, np.uint64)
    for start in range(0, whole, BYTES_AT_ONCE):
        part = flat[start : min(start + BYTES_AT_ONCE, whole)].view(np.uint64)
        total += part.reshape(-1, PAGE // 8).sum(axis=0, dtype=np.uint64)
    rest = np.zeros(PAGE, np.uint8)
    rest[: len(flat) - whole] = flat[whole:]
    total += rest.view(np.uint64)
    return hashlib.sha256(total.tobytes()).hexdigest()[:32]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
