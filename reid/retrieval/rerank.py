"""k-reciprocal re-ranking (Zhong et al. 2017) and average query expansion (Chum et al. 2007).

Both use all gallery vectors and no labels. A result with them answers another question than one without them, so
report it beside the plain one, together with :attr:`Reranked.stamp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.neighbours import nearest_among, nearest_rows

Closeness = Callable[[int, int], FloatArray]
"""(start, stop) -> minus half the distances (stop - start, G) of these queries; the array may be overwritten."""
Distances = Callable[[IntArray, IntArray], FloatArray]
"""The distances (E,), at least 0, of pairs of rows, both (E,)."""

ROWS_AT_ONCE = 512
PAIRS_AT_ONCE = 2**20
SMALLEST_DISTANCE = np.float32(1e-5)  # squared; smaller ones are rounding errors and no divisors
K1, K2, WEIGHT = 20, 6, 0.3  # the values of the paper for Market-1501


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix with N rows and E entries.

    Args:
        bounds: (N + 1,) int64; the entries of row i are ``bounds[i]:bounds[i + 1]``.
        columns: (E,) int64, ascending within a row.
        values: (E,) float32.
    """

    bounds: IntArray
    columns: IntArray
    values: FloatArray

    def entries(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """Return the entries of ``rows`` (R,): for each, its position in ``rows`` and its own position, both (E',)."""
        counts = self.bounds[rows + 1] - self.bounds[rows]
        which = np.repeat(np.arange(len(rows)), counts)
        return which, np.arange(len(which)) + np.repeat(self.bounds[rows] - np.cumsum(counts) + counts, counts)


@dataclass(frozen=True, eq=False)
class Reranked:
    """Re-ranked scores of Q queries against G gallery rows, computed a block of queries at a time.

    A call with (start, stop) returns the scores (stop - start, G) float32 of these queries in -1..0: minus the mixed
    distance, so that a larger score means more similar. :func:`reid.evaluation.score_metrics` takes such an object.
    """

    closeness: Closeness
    rows: int
    farthest: FloatArray
    query_features: SparseRows
    gallery_columns: SparseRows
    k1: int
    k2: int
    weight: float

    @property
    def stamp(self) -> str:
        """The method and its parameters, to be reported with every number computed from these scores."""
        return f"k-reciprocal, k1 {self.k1}, k2 {self.k2}, lambda {self.weight:g}"

    def __call__(self, start: int, stop: int) -> FloatArray:
        near = self._sum_of_minima(start, stop)
        near /= 2 - near  # rows sum to 1, so sum max = 2 - sum min
        near -= 1  # minus the Jaccard distance
        near *= np.float32(1 - self.weight)
        plain = self.closeness(start, stop)
        plain *= np.float32(2 * self.weight) / self.farthest[start:stop, None]
        near += plain
        return near

    def _sum_of_minima(self, start: int, stop: int) -> FloatArray:
        """Return (B, G): the sum over all columns of the smaller of the query's and the gallery row's value."""
        sums = np.zeros((stop - start) * self.rows, np.float32)
        query, where = self.query_features.entries(np.arange(start, stop))
        columns, values = self.query_features.columns[where], self.query_features.values[where]
        load = np.cumsum(np.diff(self.gallery_columns.bounds)[columns])
        cuts = np.searchsorted(load, np.arange(PAIRS_AT_ONCE, load[-1], PAIRS_AT_ONCE))
        for block in np.split(np.arange(len(columns)), cuts):
            which, entry = self.gallery_columns.entries(columns[block])
            smaller = np.minimum(values[block][which], self.gallery_columns.values[entry])
            cells = query[block][which] * self.rows + self.gallery_columns.columns[entry]
            np.add.at(sums, cells, smaller)
        return sums.reshape(stop - start, self.rows)


def k_reciprocal(
    query_vectors: FloatArray, gallery_vectors: FloatArray, *, k1: int = K1, k2: int = K2, weight: float = WEIGHT
) -> Reranked:
    """Re-rank by k-reciprocal encoding (Zhong et al., CVPR 2017, eq. 2 to 12), exactly and with sparse matrices.

    As in the authors' code, distances are squared Euclidean distances divided by the largest one of the row among all
    Q + G. A row is its own nearest neighbour, so N(p, k) has k + 1 members. Of equal distances the earlier row is
    nearer, and queries come before the gallery. Memory grows with the neighbour lists, (Q + G) (k1 + 1).

    Args:
        query_vectors: (Q, D) float32 of unit length, at least one.
        gallery_vectors: (G, D) float32 of unit length.
        k1: The number of neighbours of the k-reciprocal sets.
        k2: The number of neighbours of the local query expansion; 1 leaves it out.
        weight: The share of the plain distance in 0..1, lambda in the paper.

    Returns:
        The re-ranked scores.

    Raises:
        DataError: A parameter is out of range, or the vectors have a wrong shape, type or length.

    Example:
        >>> reranked = k_reciprocal(np.float32([[1, 0]]), np.float32([[0, 1], [0.8, 0.6]]), k1=1, k2=1)
        >>> reranked.stamp
        'k-reciprocal, k1 1, k2 1, lambda 0.3'
        >>> reranked(0, 1).argmax(axis=1).tolist()
        [1]
    """
    check_parameters(k1, k2, weight)
    if query_vectors.ndim != 2 or query_vectors.shape[1:] != gallery_vectors.shape[1:] or not len(query_vectors):
        raise DataError(
            f"re-ranking: expected vectors (Q, D) and (G, D), got {query_vectors.shape} and {gallery_vectors.shape}"
        )
    vectors = np.concatenate([query_vectors, gallery_vectors])
    near = nearest_among(vectors, max(k1 + 1, k2))
    farthest = np.maximum(2 - 2 * near.least, SMALLEST_DISTANCE)

    def distances(row: IntArray, column: IntArray) -> FloatArray:
        squared: FloatArray = np.maximum(2 - 2 * np.einsum("nd,nd->n", vectors[row], vectors[column]), 0)
        return squared

    def closeness(start: int, stop: int) -> FloatArray:
        plain: FloatArray = query_vectors[start:stop] @ gallery_vectors.T
        plain -= 1
        np.minimum(plain, 0, out=plain)  # rounding
        return plain

    known = np.maximum(2 - 2 * near.scores, 0)
    queries = len(query_vectors)
    return rerank_neighbours(closeness, distances, near.rows, known, farthest, queries, (k1, k2, weight))


def check_parameters(k1: int, k2: int, weight: float) -> None:
    """Raise DataError unless the parameters of k-reciprocal re-ranking are in range."""
    if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
        raise DataError(f"re-ranking: expected k1 and k2 >= 1 and a lambda of 0..1, got {k1}, {k2} and {weight}")


def rerank_neighbours(
    closeness: Closeness,
    distances: Distances,
    near: IntArray,
    known: FloatArray,
    farthest: FloatArray,
    queries: int,
    parameters: tuple[int, int, float],
) -> Reranked:
    """Re-rank by k-reciprocal encoding of any distances.

    Args:
        closeness: Minus half the distances of queries and gallery rows.
        distances: The distances of pairs among the N = Q + G rows, queries before the gallery.
        near: (N, K) int64, the nearest rows of each row, itself first; K is at least k1 + 1 and k2, or N.
        known: (N, K) float32, their distances.
        farthest: (N,) float32 above 0, the largest distance of each row.
        queries: The number Q of queries.
        parameters: k1, k2 and lambda, see :func:`k_reciprocal`.

    Returns:
        The re-ranked scores.
    """
    k1, k2, weight = parameters
    features = _encode_rows(distances, near[:, : k1 + 1], known[:, : k1 + 1], farthest, k1)
    if k2 > 1:
        features = _average_neighbours(features, near[:, :k2])
    return Reranked(
        closeness,
        len(near) - queries,
        farthest[:queries],
        features,
        _transpose_gallery(features, queries),
        k1,
        k2,
        weight,
    )


def _encode_rows(distances: Distances, near: IntArray, given: FloatArray, farthest: FloatArray, k1: int) -> SparseRows:
    """Encode each row as weights over its expanded k-reciprocal set: exp(-distance), with the sum 1 (eq. 5 and 7)."""
    half = min(int(np.around(k1 / 2)) + 1, near.shape[1])
    mutual, mutual_half = _is_mutual(near), _is_mutual(near[:, :half])
    parts = []
    for rows in _row_blocks(len(near)):
        row, column = _reciprocal_sets(rows, near, mutual, mutual_half)
        listed = rows[:, None] * len(near) + near[rows]  # (B, K) keys of the pairs whose distance is given
        order = np.argsort(listed, axis=None)
        keys = row * len(near) + column
        position = np.minimum(np.searchsorted(listed.ravel(), keys, sorter=order), listed.size - 1)
        known = listed.ravel()[order[position]] == keys
        distance = given[rows].ravel()[order[position]]
        distance[~known] = distances(row[~known], column[~known])
        value = np.exp(-distance / farthest[row])
        total = np.bincount(row - rows[0], value, len(rows))
        parts.append((row, column, value / total[row - rows[0]]))
    return _to_sparse(parts, len(near))


def _is_mutual(near: IntArray) -> npt.NDArray[np.bool_]:
    """Return (N, K) bool: whether a row is also among the K nearest of its neighbour (eq. 2)."""
    return np.concatenate([(near[near[rows]] == rows[:, None, None]).any(axis=2) for rows in _row_blocks(len(near))])


def _reciprocal_sets(
    rows: IntArray, near: IntArray, mutual: npt.NDArray[np.bool_], mutual_half: npt.NDArray[np.bool_]
) -> tuple[IntArray, IntArray]:
    """Return the sorted pairs (row, member) of the expanded k-reciprocal sets of ``rows`` (B,), each once (eq. 4).

    The k1/2-reciprocal set of a member is added if more than two thirds of it are in the set already.
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


def _average_neighbours(features: SparseRows, near: IntArray) -> SparseRows:
    """Replace each row by the mean of its k2 nearest rows ``near`` (N, k2): local query expansion (eq. 11)."""
    count = len(near)
    parts = []
    for rows in _row_blocks(count):
        which, where = features.entries(near[rows].ravel())
        keys = which // near.shape[1] * count + features.columns[where]
        unique, inverse = np.unique(keys, return_inverse=True)
        value = np.bincount(inverse.reshape(-1), features.values[where]) / near.shape[1]
        row, column = np.divmod(unique, count)
        parts.append((rows[0] + row, column, value))
    return _to_sparse(parts, count)


def _to_sparse(parts: list[tuple[IntArray, IntArray, npt.NDArray[np.float64]]], rows: int) -> SparseRows:
    row, column, value = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    return SparseRows(np.searchsorted(row, np.arange(rows + 1)), column, value.astype(np.float32))


def _transpose_gallery(features: SparseRows, queries: int) -> SparseRows:
    """Transpose the gallery rows: row c of the result lists the gallery rows that have an entry in column c."""
    rows = len(features.bounds) - 1
    gallery, where = features.entries(np.arange(queries, rows))
    order = where[np.argsort(features.columns[where], kind="stable")]
    bounds = np.searchsorted(features.columns[order], np.arange(rows + 1))
    return SparseRows(bounds, gallery[order - where[0]], features.values[order])


def _row_blocks(count: int) -> Iterator[IntArray]:
    for start in range(0, count, ROWS_AT_ONCE):
        yield np.arange(start, min(start + ROWS_AT_ONCE, count))


def average_query_expansion(query_vectors: FloatArray, gallery_vectors: FloatArray, neighbours: int) -> FloatArray:
    """Replace each query by the mean of itself and its nearest gallery rows (Chum et al., ICCV 2007).

    Args:
        query_vectors: (Q, D) float32 of unit length.
        gallery_vectors: (G, D) float32 of unit length.
        neighbours: How many gallery rows are averaged with each query, at least 1.

    Returns:
        (Q, D) float32 of unit length.

    Raises:
        DataError: The vectors or ``neighbours`` are wrong, or a mean is zero.

    Example:
        >>> average_query_expansion(np.float32([[1, 0]]), np.float32([[0, 1], [0.6, 0.8]]), 1).round(2).tolist()
        [[0.8899999856948853, 0.44999998807907104]]
    """
    return expanded_by(query_vectors, gallery_vectors, nearest_rows(query_vectors, gallery_vectors, neighbours).rows)


def expanded_by(query_vectors: FloatArray, gallery_vectors: FloatArray, near: IntArray) -> FloatArray:
    """Replace each query by the mean of itself and the gallery rows ``near`` (Q, K), scaled to unit length."""
    sums = query_vectors.astype(np.float64)
    for rows in near.T:
        sums += gallery_vectors[rows]
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if not lengths.all():
        raise DataError(f"query expansion: query {int(np.argmin(lengths))} and its neighbours have the mean zero")
    expanded: FloatArray = (sums / lengths).astype(np.float32)
    return expanded
