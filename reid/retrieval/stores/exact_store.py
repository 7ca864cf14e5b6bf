"""A store that scores every row: slow, simple and the reference for every other store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.exact import exact_search
from reid.retrieval.row_table import RowTable
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

if TYPE_CHECKING:
    from reid.retrieval.filters import Filter


class ExactStore:
    """Rows in arrays that are sorted by row number; see :class:`reid.retrieval.stores.store.VectorStore`.

    Args:
        dimension: The length of a vector.

    Example:
        >>> store = ExactStore(2)
        >>> store.add(np.array([7, 3]), np.float32([[1, 0], [0.6, 0.8]]))
        >>> store.search(np.float32([[1, 0]]), k=1).answers(0)
        [(7, 1.0)]
    """

    def __init__(self, dimension: int):
        self._dimension = dimension
        self._rows: StoredRows | None = StoredRows(np.empty(0, np.int64), np.empty((0, dimension), np.float32))

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._dimension

    def add(self, row_ids: IntArray, vectors: FloatArray, columns: RowTable | None = None) -> None:
        """Add rows; see :meth:`VectorStore.add <reid.retrieval.stores.store.VectorStore.add>`."""
        rows = self._open_rows()
        check_rows(self.dimension, row_ids, vectors, columns)
        together = np.concatenate([rows.row_ids, row_ids])
        if len(np.unique(together)) != len(together):
            raise DataError("store: expected new row numbers, got one that is there already")
        order = np.argsort(together)
        table = _joined(rows, columns)
        self._rows = StoredRows(
            together[order],
            np.concatenate([rows.vectors, vectors])[order],
            None if table is None else table.take(order),
        )

    def remove(self, row_ids: IntArray) -> int:
        """Remove rows; unknown numbers are skipped."""
        rows = self._open_rows()
        kept = ~np.isin(rows.row_ids, row_ids)
        columns = None if rows.columns is None else rows.columns.take(np.flatnonzero(kept))
        self._rows = StoredRows(rows.row_ids[kept], rows.vectors[kept], columns)
        return int(np.count_nonzero(~kept))

    def search(
        self, queries: FloatArray, k: int, allowed: IntArray | None = None, where: Filter | None = None
    ) -> Ranking:
        """Find the ``k`` nearest rows of each query by scoring all rows."""
        rows = self._open_rows()
        check_queries(self.dimension, queries, k)
        keep: BoolArray = np.ones(len(rows.row_ids), np.bool_)
        if allowed is not None:
            keep &= np.isin(rows.row_ids, allowed)
        if where is not None:
            keep &= filtered_rows(where, rows.columns)
        found = exact_search(queries, rows.vectors[keep], k)
        return Ranking(rows.row_ids[keep][found.rows], found.scores, found.counts)

    def batches(self) -> Iterator[StoredRows]:
        """Yield all rows."""
        rows = self._open_rows()
        for start in range(0, len(rows.row_ids), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            columns = None if rows.columns is None else RowTable(rows.columns.arrow.slice(start, ROWS_AT_ONCE))
            yield StoredRows(rows.row_ids[part], rows.vectors[part], columns)

    def count(self) -> int:
        """Return the number of rows."""
        return len(self._open_rows().row_ids)

    def snapshot(self, path: Path) -> None:
        """Write the rows to one file."""
        write_snapshot(path, self.dimension, self.batches())

    def close(self) -> None:
        """Forget the rows."""
        self._rows = None

    def _open_rows(self) -> StoredRows:
        if self._rows is None:
            raise closed_store()
        return self._rows


def _joined(rows: StoredRows, columns: RowTable | None) -> RowTable | None:
    """Return the metadata of the rows and of new rows."""
    if rows.columns is None and len(rows.row_ids):
        if columns is not None:
            raise DataError("store: expected rows without metadata, like those that are there")
        return None
    if rows.columns is None or columns is None:
        if rows.columns is not None:
            raise DataError("store: expected rows with metadata, like those that are there")
        return columns
    return RowTable.concatenated([rows.columns, columns])
