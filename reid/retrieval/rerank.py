"""Second thoughts about a ranking from the neighbours of the neighbours: k-reciprocal re-ranking, query expansion.

Both use all gallery vectors and no labels, so a score with them answers another question than one
without: report it beside the plain one, with :attr:`Reranked.stamp`.  Knows vectors only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.neighbours import nearest_among, nearest_rows

ROWS_AT_ONCE = 512
PAIRS_AT_ONCE = 2**20
ROUNDING = np.float32(1e-5)  # squared distances below are as good as 0, and not to be divided by
K1, K2, WEIGHT = 20, 6, 0.3  # the paper's for Market-1501


@dataclass(frozen=True)
class Sparse:
    """Rows of a sparse matrix: row i has the ``columns`` and ``values`` at ``bounds[i]:bounds[i + 1]``.

    ``bounds`` (N + 1,) and ``columns`` (E,) int64, ascending within a row; ``values`` (E,) float32.
    """

    bounds: IntArray
    columns: IntArray
    values: FloatArray

    def entries(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Of ``rows`` (R,): which of them (position in ``rows``) and where its entries are, both (E',)."""
        counts = self.bounds[rows + 1] - self.bounds[rows]
        which = np.repeat(np.arange(len(rows)), counts)
        return which, np.arange(len(which)) + np.repeat(self.bounds[rows] - np.cumsum(counts) + counts, counts)


@dataclass(frozen=True, eq=False)
class Reranked:
    """Re-ranked scores of Q queries against G gallery rows, a block of queries at a time.

    Called with (start, stop) it gives the scores (stop - start, G) float32 of these queries, -1..0:
    minus the mixed distance, so larger is nearer; as ``evaluation.score_metrics`` wants them.
    """

    queries: FloatArray
    gallery: FloatArray
    farthest: FloatArray
    query_features: Sparse
    gallery_columns: Sparse
    k1: int
    k2: int
    weight: float

    @property
    def stamp(self) -> str:
        """What must stand beside every number computed from these scores."""
        return f"k-reciprocal, k1 {self.k1}, k2 {self.k2}, lambda {self.weight:g}"

    def __call__(self, start: int, stop: int) -> FloatArray:
        near = self._shared(start, stop)
        near /= 2 - near  # rows sum to 1, so sum max = 2 - sum min
        near -= 1  # minus the Jaccard distance
        near *= np.float32(1 - self.weight)
        plain = self.queries[start:stop] @ self.gallery.T
        plain -= 1  # minus half the squared distance
        np.minimum(plain, 0, out=plain)  # rounding
        plain *= np.float32(2 * self.weight) / self.farthest[start:stop, None]
        near += plain
        return near

    def _shared(self, start: int, stop: int) -> FloatArray:
        """(B, G): the sum over all columns of the smaller of the query's and the gallery row's value."""
        sums = np.zeros((stop - start) * len(self.gallery), np.float32)
        query, where = self.query_features.entries(np.arange(start, stop))
        columns, values = self.query_features.columns[where], self.query_features.values[where]
        load = np.cumsum(np.diff(self.gallery_columns.bounds)[columns])
        cuts = np.searchsorted(load, np.arange(PAIRS_AT_ONCE, load[-1], PAIRS_AT_ONCE))
        for some in np.split(np.arange(len(columns)), cuts):
            which, entry = self.gallery_columns.entries(columns[some])
            smaller = np.minimum(values[some][which], self.gallery_columns.values[entry])
            cells = query[some][which] * len(self.gallery) + self.gallery_columns.columns[entry]
            np.add.at(sums, cells, smaller)
        return sums.reshape(stop - start, len(self.gallery))


def k_reciprocal(
    query_vectors: FloatArray, gallery_vectors: FloatArray, *, k1: int = K1, k2: int = K2, weight: float = WEIGHT
) -> Reranked:
    """Re-rank by k-reciprocal encoding (Zhong et al., CVPR 2017, eq. 2 to 12), exact and sparse.

    ``query_vectors`` (Q, D) and ``gallery_vectors`` (G, D) float32, unit length.  Distances are
    squared Euclidean, divided by the largest of the row among all Q + G, as in the authors' code; a
    row counts as its own nearest neighbour, so N(p, k) has k + 1 members; of equal distances the
    earlier row is nearer, queries before the gallery.  ``weight`` is the paper's lambda: the share of
    the plain distance.  Memory is that of the neighbour lists, (Q + G) (k1 + 1), not of a matrix.
    """
    if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
        raise DataError(f"re-ranking: expected k1 and k2 >= 1 and a lambda of 0..1, got {k1}, {k2} and {weight}")
    if query_vectors.ndim != 2 or query_vectors.shape[1:] != gallery_vectors.shape[1:] or not len(query_vectors):
        raise DataError(
            f"re-ranking: expected vectors (Q, D) and (G, D), got {query_vectors.shape} and {gallery_vectors.shape}"
        )
    vectors = np.concatenate([query_vectors, gallery_vectors])
    near = nearest_among(vectors, max(k1 + 1, k2))
    farthest = np.maximum(2 - 2 * near.least, ROUNDING)
    features = _encode(vectors, near.rows[:, : k1 + 1], near.scores[:, : k1 + 1], farthest, k1)
    if k2 > 1:
        features = _expand(features, near.rows[:, :k2])
    queries = len(query_vectors)
    return Reranked(
        query_vectors, gallery_vectors, farthest[:queries], features, _by_column(features, queries), k1, k2, weight
    )


def _encode(vectors: FloatArray, near: IntArray, scores: FloatArray, farthest: FloatArray, k1: int) -> Sparse:
    """Each row as a distribution over its expanded k-reciprocal set: exp(-distance), sum 1 (eq. 5 and 7)."""
    half = min(int(np.around(k1 / 2)) + 1, near.shape[1])
    mutual, mutual_half = _mutual(near), _mutual(near[:, :half])
    parts = []
    for rows in _chunks(len(near)):
        row, column = _reciprocal_sets(rows, near, mutual, mutual_half)
        listed = rows[:, None] * len(near) + near[rows]  # (B, K) keys of what has a score already
        order = np.argsort(listed, axis=None)
        keys = row * len(near) + column
        place = np.minimum(np.searchsorted(listed.ravel(), keys, sorter=order), listed.size - 1)
        known = listed.ravel()[order[place]] == keys
        score = scores[rows].ravel()[order[place]]
        score[~known] = np.einsum("nd,nd->n", vectors[row[~known]], vectors[column[~known]])
        value = np.exp(-np.maximum(2 - 2 * score, 0) / farthest[row])
        total = np.bincount(row - rows[0], value, len(rows))
        parts.append((row, column, value / total[row - rows[0]]))
    return _sparse(parts, len(near))


def _mutual(near: IntArray) -> npt.NDArray[np.bool_]:
    """(N, K) bool: the row is among the K nearest of its neighbour too (eq. 2)."""
    return np.concatenate([(near[near[rows]] == rows[:, None, None]).any(axis=2) for rows in _chunks(len(near))])


def _reciprocal_sets(
    rows: IntArray, near: IntArray, mutual: npt.NDArray[np.bool_], mutual_half: npt.NDArray[np.bool_]
) -> tuple[IntArray, IntArray]:
    """Pairs (row, member) of the expanded k-reciprocal sets of ``rows`` (B,), sorted, each once (eq. 4).

    The k1/2-reciprocal set of a member joins if more than two thirds of it are in the set already.
    """
    inside = mutual[rows]  # (B, K)
    members = near[rows]
    half = mutual_half.shape[1]
    theirs, valid = near[members][:, :, :half], mutual_half[members] & inside[:, :, None]  # (B, K, H)
    own = np.where(inside, members, -1)
    common = (theirs[..., None] == own[:, None, None, :]).any(axis=3) & valid
    joins = 3 * common.sum(axis=2) > 2 * valid.sum(axis=2)  # (B, K)
    added = valid & joins[:, :, None]
    keys = np.concatenate(
        [
            (rows[:, None] * len(near) + members)[inside],
            (rows[:, None, None] * len(near) + theirs)[added],
        ]
    )
    return np.divmod(np.unique(keys), len(near))


def _expand(features: Sparse, near: IntArray) -> Sparse:
    """The mean of the rows of the k2 nearest ``near`` (N, k2): local query expansion (eq. 11)."""
    count = len(near)
    parts = []
    for rows in _chunks(count):
        which, where = features.entries(near[rows].ravel())
        keys = which // near.shape[1] * count + features.columns[where]
        unique, inverse = np.unique(keys, return_inverse=True)
        value = np.bincount(inverse.reshape(-1), features.values[where]) / near.shape[1]
        row, column = np.divmod(unique, count)
        parts.append((rows[0] + row, column, value))
    return _sparse(parts, count)


def _sparse(parts: list[tuple[IntArray, IntArray, npt.NDArray[np.float64]]], rows: int) -> Sparse:
    row, column, value = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    return Sparse(np.searchsorted(row, np.arange(rows + 1)), column, value.astype(np.float32))


def _by_column(features: Sparse, queries: int) -> Sparse:
    """The gallery part transposed: row c lists the gallery rows that have column c."""
    rows = len(features.bounds) - 1
    gallery, where = features.entries(np.arange(queries, rows))
    order = where[np.argsort(features.columns[where], kind="stable")]
    bounds = np.searchsorted(features.columns[order], np.arange(rows + 1))
    return Sparse(bounds, gallery[order - where[0]], features.values[order])


def _chunks(count: int) -> Iterator[IntArray]:
    for start in range(0, count, ROWS_AT_ONCE):
        yield np.arange(start, min(start + ROWS_AT_ONCE, count))


def average_query_expansion(query_vectors: FloatArray, gallery_vectors: FloatArray, neighbours: int) -> FloatArray:
    """New query vectors (Q, D), unit length: the mean of the query and its nearest gallery rows.

    Average query expansion (Chum et al., ICCV 2007).  ``query_vectors`` (Q, D), ``gallery_vectors``
    (G, D) float32, unit length; ``neighbours`` >= 1 rows join each query.
    """
    near = nearest_rows(query_vectors, gallery_vectors, neighbours).rows
    sums = query_vectors.astype(np.float64)
    for rows in near.T:
        sums += gallery_vectors[rows]
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if not lengths.all():
        raise DataError(f"query expansion: query {int(np.argmin(lengths))} and its neighbours cancel out")
    expanded: FloatArray = (sums / lengths).astype(np.float32)
    return expanded
