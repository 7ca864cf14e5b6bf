"""A store with an approximate index, for galleries that are too large to score every row.

The index only proposes candidates: their scores are exact, rows that were added after it was built are scored one by
one, and removed rows are left out. A search with a filter scores the rows that the filter keeps, so it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reid.errors import GalleryError
from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.exact import empty_ranking
from reid.retrieval.stores.flat_store import FlatStore, Segment, StoredPositions, search_segments
from reid.retrieval.stores.index_kinds import FLAT, INDEX_KINDS, choose_index_kind, count_lists
from reid.retrieval.stores.row_numbers import RowNumbers
from reid.retrieval.stores.store import BoolArray, check_queries
from reid.retrieval.stores.tile_search import rank_exactly

if TYPE_CHECKING:
    from reid.retrieval.faiss_index import CandidateIndex
    from reid.retrieval.filters import Filter
    from reid.retrieval.row_table import RowTable
    from reid.retrieval.stores.row_codes import CodeSource

EXTRA_CANDIDATES = 16  # beyond those for k answers
MOST_EXTRA_CANDIDATES = 512  # beyond these, because removed rows may be among them
SAMPLE_ROWS = 200  # of the gallery, with which the recall is measured
SAMPLE_RANKS = 10
FEWEST_TRAINING_ROWS, TRAINING_ROWS_PER_LIST = 2**14, 64
ROWS_AT_ONCE = 2**16
DEFAULT_RECALL = 0.99


@dataclass(frozen=True)
class IndexReport:
    """What an index was measured to do on the gallery itself.

    Args:
        index_kind: Its kind.
        rows: The number of rows that it was built of.
        effort: ``nprobe`` of inverted lists, ``efSearch`` of a graph; 0 where there is nothing to choose.
        recall: The share of the 10 nearest rows that it finds, for vectors near some rows of the gallery; 1 for "flat".
        wished: The recall that was asked for.
    """

    index_kind: str
    rows: int
    effort: int
    recall: float
    wished: float

    @property
    def line(self) -> str:
        """One line for people."""
        effort = f", effort {self.effort}" if self.effort else ""
        below = "" if self.recall >= self.wished else f"; it does not reach the wished recall of {self.wished:g}"
        return f'index "{self.index_kind}" of {self.rows:,} rows{effort}: measured recall {self.recall:.4f}{below}'


class IndexedStore(FlatStore):
    """A flat store with an approximate index; see :class:`reid.retrieval.stores.store.VectorStore`.

    The index does not change what may be added, removed or filtered, only how fast and how completely a search without
    a filter finds the nearest rows. Before :meth:`build_index` or :meth:`read_index` every search is exact.

    Args:
        dimension: The length of a vector.
        index_kind: "flat", "fp16", "sq8", "ivf-flat", "ivf-pq", "hnsw", or "auto", which chooses by size.
        recall: The wished recall, in 0..1; the search settings are chosen for it.

    Example:
        >>> store = IndexedStore(2, "fp16")
        >>> store.add(np.array([7, 3]), np.float32([[1, 0], [0.6, 0.8]]))
        >>> store.build_index().recall
        1.0
        >>> store.search(np.float32([[1, 0]]), k=1).answers(0)
        [(7, 1.0)]
    """

    def __init__(self, dimension: int, index_kind: str = "auto", recall: float = DEFAULT_RECALL):
        super().__init__(dimension)
        choose_index_kind(index_kind, 0)
        self.index_kind = index_kind
        self.recall = recall
        self._index: _Index | None = None

    def add(
        self,
        row_ids: IntArray,
        vectors: FloatArray,
        columns: RowTable | None = None,
        source: CodeSource | None = None,
    ) -> None:
        """Add rows; they are scored one by one until the index is built again."""
        super().add(row_ids, vectors, columns, source)
        index = self._index
        if index is not None and index.covered.positions(row_ids).size:  # numbers that were removed and come back
            kept = index.covered.row_ids[~index.covered.mask(row_ids)]
            self._index = _Index(index.index, index.index_kind, RowNumbers.of(kept))

    def build_index(self) -> IndexReport:
        """Build the index of the rows that are there, and choose its search settings for the wished recall.

        Returns:
            What was built, and its recall as measured with vectors near rows of the store.
        """
        segments = self._open_segments()
        rows = sum(segment.count for segment in segments)
        name = choose_index_kind(self.index_kind, rows)
        if name == FLAT or rows < INDEX_KINDS[name].fewest:
            self._index = None
            return IndexReport(FLAT, rows, 0, 1.0, self.recall)
        from reid.retrieval.faiss_index import CandidateIndex

        random = np.random.default_rng(0)
        stored = StoredPositions(segments)
        positions = stored.present()
        factory = INDEX_KINDS[name].factory_string(rows, self.dimension)
        size = min(rows, max(FEWEST_TRAINING_ROWS, TRAINING_ROWS_PER_LIST * count_lists(rows)))
        sample = stored.vectors_at(positions[np.sort(random.permutation(rows)[:size])])[1]
        parts = (stored.vectors_at(positions[at : at + ROWS_AT_ONCE])[1] for at in range(0, rows, ROWS_AT_ONCE))
        index = CandidateIndex.build(factory, stored.numbers_at(positions), parts, sample)
        built = _Index(index, name, RowNumbers.of(index.row_ids))
        report = self._choose_effort(built, segments)
        self._index = built
        return report

    def read_index(self, path: Path, index_kind: str) -> None:
        """Read the index that :meth:`write_index` wrote; rows that it does not hold are scored one by one.

        Args:
            path: The file.
            index_kind: Its kind.

        Raises:
            GalleryError: The file is damaged, or an index of other vectors.
        """
        from reid.retrieval.faiss_index import CandidateIndex

        try:
            index = CandidateIndex.read(path)
        except RuntimeError as error:
            line = str(error).partition("\n")[0]
            raise GalleryError(f"{path}: the index is damaged ({line}); build it again") from error
        if index.dimension != self.dimension or index_kind not in INDEX_KINDS:
            raise GalleryError(f"{path}: the index belongs to other vectors; build it again")
        self._index = _Index(index, index_kind, RowNumbers.of(index.row_ids))

    def write_index(self, path: Path) -> None:
        """Write the index to a file; OSError or RuntimeError when it cannot be written.

        Raises:
            GalleryError: There is no index.
        """
        if self._index is None:
            raise GalleryError('the store has no index to write; a "flat" store needs none')
        self._index.index.write(path)

    def search(
        self, queries: FloatArray, k: int, allowed: IntArray | None = None, where: Filter | None = None
    ) -> Ranking:
        """Find the ``k`` nearest rows of each query: exactly with a filter, by the index without one."""
        index = self._index
        if index is None or allowed is not None or where is not None:
            return super().search(queries, k, allowed, where)
        segments = self._open_segments()
        check_queries(self.dimension, queries, k)
        return index.search(segments, queries, k)

    def close(self) -> None:
        """Forget the rows and the index."""
        super().close()
        self._index = None

    def _choose_effort(self, index: _Index, segments: Sequence[Segment]) -> IndexReport:
        """Set the least effort that reaches the wished recall on rows of the store."""
        stored = StoredPositions(segments)
        positions = stored.present()
        picked = np.sort(np.random.default_rng(1).permutation(len(positions))[:SAMPLE_ROWS])
        masks = [segment.present for segment in segments]
        queries = queries_near(
            stored.vectors_at(positions[picked])[1], lambda rows: search_segments(segments, rows, 2, masks)
        )
        expected = search_segments(segments, queries, SAMPLE_RANKS, masks)
        recall = 0.0
        for effort in INDEX_KINDS[index.index_kind].efforts:
            index.index.set_effort(effort)
            recall = recall_of(index.search(segments, queries, SAMPLE_RANKS), expected)
            if recall >= self.recall:
                break
        return IndexReport(index.index_kind, len(positions), index.index.effort, recall, self.recall)


@dataclass(frozen=True)
class _Index:
    """An index, its kind, the numbers of the rows that it finds, and the last answer of :meth:`_others`."""

    index: CandidateIndex
    index_kind: str
    covered: RowNumbers
    others: list[tuple[Sequence[Segment], list[BoolArray]]] = field(default_factory=list)

    def search(self, segments: Sequence[Segment], queries: FloatArray, k: int) -> Ranking:
        """Find about the ``k`` nearest rows of each query; their scores are exact."""
        k = min(k, sum(segment.count for segment in segments))
        if not k or not len(queries):
            return empty_ranking(len(queries), k)
        stored, others = StoredPositions(segments), self._others(segments)
        held = sum(segment.count for segment in segments) - sum(int(np.count_nonzero(mask)) for mask in others)
        total = len(self.index.row_ids)
        removed = min(total - held, MOST_EXTRA_CANDIDATES)
        n = min(k * INDEX_KINDS[self.index_kind].refine + EXTRA_CANDIDATES + removed, total)
        query, numbers = self.index.search(queries, n)
        at = self.covered.find(numbers) >= 0
        position = np.where(at, stored.find(numbers), -1)
        query, position = query[position >= 0], position[position >= 0]
        short = np.flatnonzero(np.bincount(query, minlength=len(queries)) < min(k, held))  # too few are still there
        tail = search_segments(segments, queries, k, others)
        asked = np.repeat(np.arange(len(queries)), tail.counts)
        query = np.concatenate([query, asked])
        position = np.concatenate([position, stored.find(tail.rows.reshape(-1))])
        found = rank_exactly(queries, query, position, stored.vectors_at, k).ranking(k)
        if len(short):
            exact = search_segments(segments, queries[short], k, [segment.present for segment in segments])
            found.rows[short], found.scores[short], found.counts[short] = exact.rows, exact.scores, exact.counts
        return found

    def _others(self, segments: Sequence[Segment]) -> list[BoolArray]:
        """Return for each segment (N,) bool, the rows that the index does not hold."""
        known = self.others[:1]  # another thread may replace it
        if not known or known[0][0] is not segments:
            masks = []
            for segment in segments:
                mask = ~segment.numbers.mask(self.covered.row_ids)
                masks.append(mask if segment.present is None else mask & segment.present)
            known = self.others[:] = [(segments, masks)]
        return known[0][1]


def queries_near(rows: FloatArray, search: Callable[[FloatArray], Ranking]) -> FloatArray:
    """Return vectors (S, D) near rows (S, D) of a store but not in it, as queries are.

    An index finds its own rows more easily than others, so a recall that is measured with these would be too good. Each
    vector is moved by half the distance of its row from the nearest other one, in a random direction.

    Args:
        rows: The rows.
        search: Finds the two nearest rows of each: the row itself and the nearest other one.
    """
    found = search(rows)
    nearest = np.where(found.counts > 1, found.scores[:, -1], 0) if found.scores.shape[1] else np.zeros(len(rows))
    distance = np.sqrt(np.maximum(0, 2 - 2 * nearest))
    moves = np.random.default_rng(2).standard_normal(rows.shape)
    moves *= (0.5 * distance / np.linalg.norm(moves, axis=1))[:, None]
    moved = rows + moves
    queries: FloatArray = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
    return queries


def recall_of(found: Ranking, expected: Ranking) -> float:
    """Return the share of the expected rows that were found.

    Args:
        found: What an index found.
        expected: The exact answers.

    Example:
        >>> exact = Ranking(np.array([[4, 5]]), np.float32([[0.5, 0.4]]), np.array([2]))
        >>> other = Ranking(np.array([[4, 6]]), np.float32([[0.5, 0.3]]), np.array([2]))
        >>> recall_of(other, exact)
        0.5
    """
    right = total = 0
    for i, count in enumerate(expected.counts.tolist()):
        wanted = set(expected.rows[i, :count].tolist())
        right += len(wanted & set(found.rows[i, : found.counts[i]].tolist()))
        total += len(wanted)
    return right / total if total else 1.0
