"""One state of the rows of a gallery in memory, and how it is searched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock

import numpy as np

from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.exact import empty_ranking
from reid.retrieval.filters import BoolArray
from reid.retrieval.gallery_index import IndexFile, fill_store
from reid.retrieval.row_table import RowTable
from reid.retrieval.segments import GallerySegment
from reid.retrieval.stores.flat_store import FlatStore
from reid.retrieval.stores.store import VectorStore


class GalleryRows:
    """One state of a gallery. It is replaced as a whole, so that a running search never reads half a change.

    Args:
        table: The rows that may answer (G,); row i of a ranking is row i of the table.
        segments: The segments that hold them, among other rows.
        dimension: The length of a vector.
        index: The approximate index of the folder; None where there is none.
    """

    def __init__(
        self, table: RowTable, segments: Iterable[GallerySegment], dimension: int, index: IndexFile | None = None
    ) -> None:
        self.table = table
        self.segments = tuple(segments)
        self.dimension = dimension
        self.index = index
        self._store: VectorStore | None = None
        self._lock = Lock()

    @property
    def store(self) -> VectorStore:
        """The vectors by the ids of their rows; they are checked when a search needs them for the first time.

        Raises:
            GalleryError: The file of the vectors is damaged.
        """
        with self._lock:
            if self._store is None:
                if self.index is not None:
                    store = self.index.open(self.dimension, self.segments, self.table.row_ids)
                else:
                    store = FlatStore(self.dimension)
                    fill_store(store, self.segments, self.table.row_ids)
                self._store = store
            return self._store

    def select(self, mask: BoolArray) -> GalleryRows:
        """Return the rows where ``mask`` (G,) is true; the others answer no later search of this state either."""
        if mask.all():
            return self
        left = GalleryRows(self.table.take(np.flatnonzero(mask)), self.segments, self.dimension, self.index)
        if self._store is not None:
            self._store.remove(self.table.row_ids[~mask])
            left._store = self._store
        return left

    def with_column(self, name: str, texts: Sequence[str]) -> GalleryRows:
        """Return the rows with a column of text (G,), in the place of an older one of this name."""
        import pyarrow as pa

        table = self.table.with_column(name, pa.array(texts, pa.string()).dictionary_encode())
        rows = GalleryRows(table, self.segments, self.dimension, self.index)
        rows._store = self._store
        return rows

    def vectors(self) -> FloatArray:
        """Return a copy (G, D) of the vectors of all rows."""
        return self.vectors_at(np.arange(len(self.table)))

    def vectors_at(self, rows: IntArray) -> FloatArray:
        """Return a copy (K, D) of the vectors of some rows (K,)."""
        ids = self.table.row_ids[rows]
        vectors = np.empty((len(rows), self.dimension), np.float32)
        for segment in self.segments:
            own = segment.table.row_ids
            if not len(own):
                continue
            positions = np.searchsorted(own, ids)
            found = np.flatnonzero((positions < len(own)) & (own[np.minimum(positions, len(own) - 1)] == ids))
            if len(found):
                vectors[found] = segment.vectors[positions[found]]
        return vectors

    def search(self, vectors: FloatArray, k: int, keep: BoolArray | None) -> Ranking:
        """Find the ``k`` nearest rows of each query (Q, D) among the rows where ``keep`` (G,) is true."""
        ids = self.table.row_ids
        allowed = None if keep is None or keep.all() else ids[keep]
        size = len(ids) if allowed is None else len(allowed)
        if not len(vectors) or not size:
            return empty_ranking(len(vectors), min(k, size))
        found = self.store.search(vectors, min(k, size), allowed)
        rows = np.searchsorted(ids, found.rows)
        rows[np.arange(rows.shape[1]) >= found.counts[:, None]] = 0
        return Ranking(rows, found.scores, found.counts)

    def search_groups(self, vectors: FloatArray, k: int, keep: BoolArray | None, groups: IntArray) -> Ranking:
        """Find the best row of each of the ``k`` nearest groups for each query.

        Args:
            vectors: (Q, D) float32.
            k: The number of groups.
            keep: (G,) bool, which rows may answer; None allows all.
            groups: (G,) int64, the group of each row.
        """
        size = len(groups) if keep is None else int(np.count_nonzero(keep))
        present = len(np.unique(groups if keep is None else groups[keep]))
        wanted, depth = min(k, present), min(4 * k, size)
        while True:
            found = self.search(vectors, max(depth, 1), keep)
            best = [first_of_groups(found.rows[i, :count], groups, wanted) for i, count in enumerate(found.counts)]
            if depth >= size or all(len(positions) >= wanted for positions in best):
                break
            depth = min(4 * depth, size)
        ranking = empty_ranking(len(vectors), wanted)
        for i, positions in enumerate(best):
            ranking.rows[i, : len(positions)] = found.rows[i, positions]
            ranking.scores[i, : len(positions)] = found.scores[i, positions]
            ranking.counts[i] = len(positions)
        return Ranking(ranking.rows, ranking.scores, ranking.counts)


def first_of_groups(rows: IntArray, groups: IntArray, k: int) -> IntArray:
    """Return the positions in ``rows`` (R,) of the first row of each group, at most ``k``, in their order."""
    _, first = np.unique(groups[rows], return_index=True)
    return np.sort(first)[:k].astype(np.int64)


def groups_by(table: RowTable, name: str) -> IntArray:
    """Return (N,) int64, the group of each row: rows with the same label are one, a row without one is by itself."""
    codes, words = table.codes(name)
    groups = codes.astype(np.int64)
    if "" in words:
        unknown = np.flatnonzero(codes == words.index(""))
        groups[unknown] = len(words) + unknown
    return groups
