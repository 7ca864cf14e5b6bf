"""k-reciprocal re-ranking and query expansion with scores that are normalized per pair of cameras.

Both find neighbours by normalized scores (:mod:`reid.retrieval.score_normalization`), so crops of other cameras are
found as well as those of the own one.
"""

from __future__ import annotations

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.rerank import (
    K1,
    K2,
    SMALLEST_DISTANCE,
    WEIGHT,
    Reranked,
    check_parameters,
    expanded_by,
    rerank_neighbours,
)
from reid.retrieval.score_normalization import NormalizedScores

ROWS_AT_ONCE = 256


def k_reciprocal_normalized(
    scores: NormalizedScores, *, k1: int = K1, k2: int = K2, weight: float = WEIGHT
) -> Reranked:
    """Re-rank by k-reciprocal encoding as :func:`reid.retrieval.rerank.k_reciprocal` does, of normalized scores.

    The distance of two rows is the largest normalized score of all pairs, minus theirs.  A row is its own nearest
    neighbour, whatever other scores are.  Memory grows with the neighbour lists and with a block of scores.

    Args:
        scores: The normalized scores.
        k1: The number of neighbours of the k-reciprocal sets.
        k2: The number of neighbours of the local query expansion; 1 leaves it out.
        weight: The share of the distance in 0..1, lambda in the paper.

    Returns:
        The re-ranked scores.

    Raises:
        DataError: A parameter is out of range.
    """
    check_parameters(k1, k2, weight)
    among = scores.joined()
    near, known, least = _nearest_normalized(among, max(k1 + 1, k2))
    largest = np.float32(known.max())
    farthest = np.maximum(largest - least, SMALLEST_DISTANCE)
    given = largest - known

    def distances(row: IntArray, column: IntArray) -> FloatArray:
        found: FloatArray = np.maximum(largest - among.normalize_pairs(row, column), 0)
        return found

    def closeness(start: int, stop: int) -> FloatArray:
        block = scores(start, stop)
        block -= largest
        block *= np.float32(0.5)
        return block

    queries = len(scores.queries.vectors)
    return rerank_neighbours(closeness, distances, near, given, farthest, queries, (k1, k2, weight))


def expand_normalized(scores: NormalizedScores, neighbours: int) -> NormalizedScores:
    """Replace each query by the mean of itself and the gallery rows with the best normalized scores.

    Args:
        scores: The normalized scores.
        neighbours: How many gallery rows are averaged with each query, at least 1.

    Returns:
        The normalized scores of the expanded queries.

    Raises:
        DataError: ``neighbours`` is wrong, or a mean is zero.
    """
    if neighbours < 1:
        raise DataError(f"query expansion: expected at least 1 neighbour, got {neighbours}")
    count, k = len(scores.queries.vectors), min(neighbours, len(scores.gallery.vectors))
    near = np.empty((count, k), np.int64)
    for start in range(0, count, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, count)
        near[start:stop] = _best(scores(start, stop), k)
    return scores.with_queries(expanded_by(scores.queries.vectors, scores.gallery.vectors, near))


def _nearest_normalized(among: NormalizedScores, k: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return the k nearest rows (N, K) of each row, itself first, their scores (N, K), and the least score (N,)."""
    count = len(among.queries.vectors)
    k = min(k, count)
    near, known = np.empty((count, k), np.int64), np.empty((count, k), np.float32)
    least = np.empty(count, np.float32)
    for start in range(0, count, ROWS_AT_ONCE):
        own = np.arange(start, min(start + ROWS_AT_ONCE, count))
        block = among(start, start + len(own))
        least[own] = block.min(axis=1)
        itself = block[np.arange(len(own)), own].copy()
        block[np.arange(len(own)), own] = np.inf
        near[own] = _best(block, k)
        known[own] = np.take_along_axis(block, near[own], axis=1)
        known[own, 0] = itself
    return near, known, least


def _best(scores: FloatArray, k: int) -> IntArray:
    """Return the columns (B, k) of the best ``scores`` (B, G); of equal scores, the lower column comes first."""
    bound = np.partition(scores, -k, axis=1)[:, -k]
    best = np.empty((len(scores), k), np.int64)
    for row, lowest in enumerate(bound):
        columns = np.flatnonzero(scores[row] >= lowest)
        best[row] = columns[np.argsort(-scores[row, columns], kind="stable")[:k]]
    return best
