"""The default store: every row is scored, fast, from memory or from a memory-mapped file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.exact import empty_ranking
from reid.retrieval.row_table import RowTable
from reid.retrieval.stores.code_search import codes_help, find_by_codes
from reid.retrieval.stores.row_codes import CodedRows, CodeSource, RowCodes
from reid.retrieval.stores.row_numbers import RowNumbers, camera_order
from reid.retrieval.stores.snapshot import write_snapshot
from reid.retrieval.stores.store import (
    ROWS_AT_ONCE,
    BoolArray,
    StoredRows,
    check_queries,
    check_rows,
    closed_store,
    filtered_rows,
)
from reid.retrieval.stores.tile_search import find_nearest, tile_settings
from reid.retrieval.stores.tiles import Tile, tiles_of

if TYPE_CHECKING:
    from reid.retrieval.filters import Filter


FEWEST_CODED = 8192  # rows that may answer; fewer are searched as fast without codes
MOST_CODED_AT_ONCE = 8192  # rows of a segment whose codes are made by the first search that can use them
ROWS_PER_RANK = 64  # that may answer; where there are fewer, codes leave out too little


@dataclass(frozen=True)
class Segment:
    """Rows that were added together.

    Args:
        numbers: Their numbers.
        vectors: (N, D) float32, not a copy.
        columns: Their metadata; None where the store keeps none.
        present: (N,) bool, the rows that were not removed; None: all.
        count: The number of these rows.
        source: The short codes of the vectors.
    """

    numbers: RowNumbers
    vectors: FloatArray
    columns: RowTable | None
    present: BoolArray | None
    count: int
    source: CodeSource

    def without(self, row_ids: IntArray) -> Segment:
        """Return the segment after rows were removed."""
        gone = self.numbers.mask(row_ids)
        if self.present is not None:
            gone &= self.present
        if not gone.any():
            return self
        present = ~gone if self.present is None else self.present & ~gone
        return replace(self, present=present, count=self.count - int(np.count_nonzero(gone)))

    def answering(self, allowed: IntArray | None, where: Filter | None) -> BoolArray | None:
        """Return (N,) bool, the rows that may answer; None: all."""
        masks = [] if self.present is None else [self.present]
        if allowed is not None:
            masks.append(self.numbers.mask(allowed))
        if where is not None:
            masks.append(filtered_rows(where, self.columns))
        if not masks:
            return None
        mask = masks[0] if len(masks) == 1 else np.logical_and.reduce(masks)
        return None if mask.all() else mask


class FlatStore:
    """Rows in segments; see :class:`reid.retrieval.stores.store.VectorStore`.

    Every change replaces the tuple of segments, so a search that runs meanwhile reads the state before or after it.

    Args:
        dimension: The length of a vector.

    Example:
        >>> store = FlatStore(2)
        >>> store.add(np.array([7, 3]), np.float32([[1, 0], [0.6, 0.8]]))
        >>> store.search(np.float32([[1, 0]]), k=1).answers(0)
        [(7, 1.0)]
    """

    def __init__(self, dimension: int):
        self._dimension = dimension
        self._segments: tuple[Segment, ...] | None = ()
        self._changes = Lock()

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._dimension

    def add(
        self,
        row_ids: IntArray,
        vectors: FloatArray,
        columns: RowTable | None = None,
        source: CodeSource | None = None,
    ) -> None:
        """Add rows; see :meth:`VectorStore.add <reid.retrieval.stores.store.VectorStore.add>`.

        ``source`` has their short codes; None makes them where they help.
        """
        check_rows(self.dimension, row_ids, vectors, columns)
        vectors = np.ascontiguousarray(np.asarray(vectors))  # a memory map becomes a plain array of the same memory
        numbers = RowNumbers.of(row_ids)
        with self._changes:
            segments = self._open_segments()
            if not numbers.are_unique or any(_holds_any(segment, row_ids) for segment in segments):
                raise DataError("store: expected new row numbers, got one that is there already")
            if any((segment.columns is None) != (columns is None) for segment in segments):
                raise DataError("store: expected rows with metadata as those that are there have it, or all without")
            if len(row_ids):
                source = source or CodeSource(lambda: RowCodes.of(vectors, camera_order(columns)))
                self._segments = (*segments, Segment(numbers, vectors, columns, None, len(row_ids), source))

    def remove(self, row_ids: IntArray) -> int:
        """Remove rows; unknown numbers are skipped."""
        with self._changes:
            before = self._open_segments()
            after = tuple(segment.without(row_ids) for segment in before)
            self._segments = tuple(segment for segment in after if segment.count)
        return sum(segment.count for segment in before) - sum(segment.count for segment in after)

    def search(
        self, queries: FloatArray, k: int, allowed: IntArray | None = None, where: Filter | None = None
    ) -> Ranking:
        """Find the ``k`` nearest rows of each query, exactly."""
        segments = self._open_segments()
        check_queries(self.dimension, queries, k)
        return search_segments(segments, queries, k, [segment.answering(allowed, where) for segment in segments])

    def batches(self) -> Iterator[StoredRows]:
        """Yield all rows in ascending order of their numbers."""
        segments = self._open_segments()
        rows = StoredPositions(segments)
        positions = rows.present()
        positions = positions[np.argsort(rows.numbers_at(positions), kind="stable")]
        for start in range(0, len(positions), ROWS_AT_ONCE):
            part = positions[start : start + ROWS_AT_ONCE]
            numbers, vectors = rows.vectors_at(part)
            yield StoredRows(numbers, vectors, rows.columns_at(part))

    def count(self) -> int:
        """Return the number of rows."""
        return sum(segment.count for segment in self._open_segments())

    def snapshot(self, path: Path) -> None:
        """Write the rows to one file."""
        write_snapshot(path, self.dimension, self.batches())

    def close(self) -> None:
        """Forget the rows; a search that runs still ends."""
        self._segments = None

    def _open_segments(self) -> tuple[Segment, ...]:
        if self._segments is None:
            raise closed_store()
        return self._segments


class StoredPositions:
    """The rows of segments by position: those of the first segment, then those of the second, and so on.

    Args:
        segments: The segments.
    """

    def __init__(self, segments: Sequence[Segment]):
        self.segments = segments
        self.offsets = np.cumsum([0, *(len(segment.vectors) for segment in segments)])

    def present(self) -> IntArray:
        """Return the positions (P,) of the rows that were not removed."""
        parts = [np.arange(len(s.vectors)) if s.present is None else np.flatnonzero(s.present) for s in self.segments]
        return np.concatenate([np.empty(0, np.int64), *(self.offsets[i] + part for i, part in enumerate(parts))])

    def find(self, row_ids: IntArray) -> IntArray:
        """Return the positions (M,) of rows by their numbers (M,); -1 where a row is not there or was removed."""
        positions = np.full(len(row_ids), -1, np.int64)
        for offset, segment in zip(self.offsets.tolist(), self.segments, strict=False):
            inside = segment.numbers.find(row_ids)
            if segment.present is not None:
                inside = np.where(segment.present[inside], inside, -1)
            positions = np.where(inside >= 0, offset + inside, positions)
        return positions

    def numbers_at(self, positions: IntArray) -> IntArray:
        """Return the numbers (P,) of the rows at some positions (P,)."""
        numbers = np.empty(len(positions), np.int64)
        for segment, here, inside in self._split(positions):
            numbers[here] = segment.numbers.row_ids[inside]
        return numbers

    def vectors_at(self, positions: IntArray) -> tuple[IntArray, FloatArray]:
        """Return the numbers (P,) and vectors (P, D) of the rows at some positions (P,)."""
        if len(self.segments) == 1:
            (segment,) = self.segments
            return segment.numbers.row_ids[positions], segment.vectors[positions]
        vectors = np.empty((len(positions), self.segments[0].vectors.shape[1]), np.float32)
        for segment, here, inside in self._split(positions):
            vectors[here] = segment.vectors[inside]
        return self.numbers_at(positions), vectors

    def columns_at(self, positions: IntArray) -> RowTable | None:
        """Return the metadata of the rows at some positions (P,); None where there is none."""
        if self.segments[0].columns is None:
            return None
        parts, tables = [], []
        for segment, here, inside in self._split(positions):
            parts.append(here)
            tables.extend([] if segment.columns is None else [segment.columns.take(inside)])
        return RowTable.concatenated(tables).take(np.argsort(np.concatenate(parts)))

    def _split(self, positions: IntArray) -> Iterator[tuple[Segment, IntArray, IntArray]]:
        """Yield each segment with the elements of ``positions`` that are its own, and its rows there."""
        owner = np.searchsorted(self.offsets, positions, side="right") - 1
        for i in np.unique(owner).tolist():
            here = np.flatnonzero(owner == i)
            yield self.segments[i], here, positions[here] - self.offsets[i]


def search_segments(
    segments: Sequence[Segment], queries: FloatArray, k: int, masks: Sequence[BoolArray | None]
) -> Ranking:
    """Find the ``k`` nearest rows of each query among some rows of segments, exactly.

    Args:
        segments: The segments.
        queries: (Q, D) float32.
        k: The number of answers, at least 1.
        masks: For each segment, (N,) bool, which rows may answer; None: all.

    Returns:
        A ranking whose rows are row numbers.
    """
    sizes = [len(s.vectors) if m is None else int(np.count_nonzero(m)) for s, m in zip(segments, masks, strict=True)]
    k = min(k, sum(sizes))
    if not k or not len(queries):
        return empty_ranking(len(queries), k)
    queries, rows, settings = np.ascontiguousarray(queries), StoredPositions(segments), tile_settings(len(queries))
    if _codes_pay(segments, len(queries), k, sum(sizes)):
        coded = [
            CodedRows(codes, segment.vectors, offset, codes.take_mask(mask))
            for segment, mask, offset in zip(segments, masks, rows.offsets.tolist(), strict=False)
            for codes in [segment.source.get()]
        ]
        found = find_by_codes(queries, k, coded, rows.vectors_at)
        if found is not None:
            return found

    def tiles() -> Iterator[tuple[int, Tile]]:
        for offset, segment, mask in zip(rows.offsets.tolist(), segments, masks, strict=False):
            for tile in tiles_of(segment.vectors, mask, *settings):
                yield offset, tile

    return find_nearest(queries, k, tiles(), rows.vectors_at)


def _codes_pay(segments: Sequence[Segment], queries: int, k: int, rows: int) -> bool:
    """Whether a search is faster with the codes of some segments, of which ``rows`` rows may answer."""
    if rows < max(FEWEST_CODED, ROWS_PER_RANK * k) or not codes_help(queries):
        return False
    waiting = [s.source for s in segments if not s.source.is_ready and len(s.vectors) > MOST_CODED_AT_ONCE]
    for source in waiting:
        source.searches += 1
    return all(source.searches > 1 for source in waiting)  # to make codes costs as much as some searches


def _holds_any(segment: Segment, row_ids: IntArray) -> bool:
    held = segment.numbers.positions(row_ids)
    return bool(len(held)) and (segment.present is None or bool(segment.present[held].any()))
