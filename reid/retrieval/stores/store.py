"""The protocol of a vector store, and the checks that all stores share.

A store keeps vectors by the numbers of their rows and finds the nearest ones. All stores give the same answers: scores
are inner products as :mod:`reid.retrieval.exact` defines them, a larger score means more similar, of equal scores the
lower row comes first, and a filter never changes the order of the rows that it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, GalleryError
from reid.records import FloatArray, IntArray, Ranking

if TYPE_CHECKING:
    from reid.retrieval.filters import Filter
    from reid.retrieval.row_table import RowTable

BoolArray = npt.NDArray[np.bool_]

ROWS_AT_ONCE = 65536  # that travel together when a whole store is read


@dataclass(frozen=True)
class StoredRows:
    """Some rows of a store.

    Args:
        row_ids: (N,) int64, the numbers of the rows.
        vectors: (N, D) float32.
        columns: The metadata of the N rows; None where the store keeps none.
    """

    row_ids: IntArray
    vectors: FloatArray
    columns: RowTable | None = None


class VectorStore(Protocol):
    """Vectors by row number.

    A store may be searched by several threads while one thread adds or removes: a search sees the store before or
    after a change, never half of it.
    """

    @property
    def dimension(self) -> int:
        """The length D of a vector."""

    def add(self, row_ids: IntArray, vectors: FloatArray, columns: RowTable | None = None) -> None:
        """Add rows.

        Embedded stores keep ``vectors`` without a copy, so a memory-mapped file stays on disk; it must not change
        afterwards. The rows may come in any order. Rows of one camera that lie together make filters by camera several
        times faster (:func:`reid.retrieval.stores.row_numbers.grouped_order`); the numbers decide about ties, not the
        order.

        Args:
            row_ids: (N,) int64, at least 0, each once and none that the store holds.
            vectors: (N, D) float32 of unit length.
            columns: The metadata of the N rows, for searches with ``where``; every call gives the same columns.

        Raises:
            DataError: The arrays do not fit together or the store, or a row is there already.
            GalleryError: The store cannot be written to.
        """

    def remove(self, row_ids: IntArray) -> int:
        """Remove rows; they answer no later search.

        Args:
            row_ids: (N,) int64; numbers that the store does not hold are skipped.

        Returns:
            The number of rows that were removed.
        """

    def search(
        self, queries: FloatArray, k: int, allowed: IntArray | None = None, where: Filter | None = None
    ) -> Ranking:
        """Find the ``k`` nearest rows of each query.

        Args:
            queries: (Q, D) float32.
            k: The number of answers, at least 1.
            allowed: (A,) int64, the numbers of the rows that may answer; None allows all.
            where: A condition that an answer must fulfil as well.

        Returns:
            A ranking whose rows are row numbers. It has min(k, number of rows that may answer) ranks.

        Raises:
            DataError: The queries or ``k`` have a wrong type or shape.
            GalleryError: ``where`` needs columns that the store does not have.
        """

    def batches(self) -> Iterator[StoredRows]:
        """Yield all rows, in ascending order of their numbers, some thousand at a time."""

    def count(self) -> int:
        """Return the number of rows."""

    def snapshot(self, path: Path) -> None:
        """Write the rows to one file, which :func:`reid.retrieval.stores.snapshot.read_snapshot` reads.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be written.
        """

    def close(self) -> None:
        """Release what the store holds; it cannot be used afterwards. Closing twice does nothing."""


def check_rows(dimension: int, row_ids: IntArray, vectors: FloatArray, columns: RowTable | None) -> None:
    """Check what is added to a store.

    Raises:
        DataError: The arrays do not fit together or the store.

    Example:
        >>> check_rows(2, np.array([0]), np.float32([[1, 0]]), None)
    """
    if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] != dimension:
        raise DataError(f"store: expected float32 vectors (N, {dimension}), got {vectors.dtype} {vectors.shape}")
    if row_ids.shape != (len(vectors),) or row_ids.dtype != np.int64:
        raise DataError(f"store: expected int64 row numbers ({len(vectors)},), got {row_ids.dtype} {row_ids.shape}")
    if len(row_ids) and row_ids.min() < 0:
        raise DataError(f"store: expected row numbers of at least 0, got {row_ids.min()}")
    if columns is not None and len(columns) != len(vectors):
        raise DataError(f"store: {len(vectors)} vectors but {len(columns)} rows of metadata")


def check_queries(dimension: int, queries: FloatArray, k: int) -> None:
    """Check what is searched for.

    Raises:
        DataError: The queries or ``k`` have a wrong type, shape or value.

    Example:
        >>> check_queries(2, np.float32([[1, 0]]), 5)
    """
    if queries.ndim != 2 or queries.dtype != np.float32 or queries.shape[1] != dimension:
        raise DataError(f"search: expected float32 queries (Q, {dimension}), got {queries.dtype} {queries.shape}")
    if not np.isfinite(queries).all():
        raise DataError("search: a query vector holds NaN or infinity")
    if k < 1:
        raise DataError(f"search: expected k of at least 1, got {k}")


def filtered_rows(where: Filter, columns: RowTable | None) -> BoolArray:
    """Return (N,) bool: the rows of a table that fulfil a condition.

    Raises:
        GalleryError: There is no table.
    """
    if columns is None:
        raise GalleryError("search: the store keeps no metadata, so it cannot be filtered by an expression")
    from reid.retrieval.filters import rows_where

    return rows_where(where, columns)


def closed_store() -> GalleryError:
    """Return the error of a store that is used after it was closed."""
    return GalleryError("the store is closed; open it again")
