"""Exact search without an index: slow, simple and the reference for every other search.

This module defines a score to the last bit for all of ``reid.retrieval``: the inner product, summed in float64 and
rounded to float32. Of equal scores, the lower row comes first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import FloatArray, IntArray, Ranking

ROWS_AT_ONCE = 4096  # bounds the memory of the float64 copy


def score_rows(query: FloatArray, vectors: FloatArray) -> FloatArray:
    """Compute the scores of one query against rows.

    ``einsum`` sums every row in the same order. A matrix product may not, and then equal rows get different scores.

    Args:
        query: (D,) float32.
        vectors: (N, D) float32.

    Returns:
        (N,) float32.

    Example:
        >>> score_rows(np.float32([1, 0]), np.float32([[1, 0], [0.6, 0.8]])).tolist()
        [1.0, 0.6000000238418579]
    """
    scores = np.empty(len(vectors), np.float32)
    wide = query.astype(np.float64)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        scores[rows] = np.einsum("nd,d->n", vectors[rows].astype(np.float64), wide, optimize=False)
    return scores


def score_pairs(queries: FloatArray, vectors: FloatArray, query: IntArray, row: IntArray) -> FloatArray:
    """Compute the scores of pairs, equal to those of :func:`score_rows` to the last bit.

    Args:
        queries: (Q, D) float32.
        vectors: (N, D) float32.
        query: (E,) int64, the query of each pair.
        row: (E,) int64, the row of each pair.

    Returns:
        (E,) float32.
    """
    scores = np.empty(len(row), np.float32)
    for start in range(0, len(row), ROWS_AT_ONCE):
        pairs = slice(start, start + ROWS_AT_ONCE)
        first, second = queries[query[pairs]].astype(np.float64), vectors[row[pairs]].astype(np.float64)
        scores[pairs] = np.einsum("nd,nd->n", first, second, optimize=False)
    return scores


def best_positions(rows: IntArray, scores: FloatArray, k: int) -> IntArray:
    """Return the positions of the ``k`` best of ``rows`` (N,): larger ``scores`` (N,) first, then lower rows.

    Example:
        >>> best_positions(np.array([7, 3, 5]), np.float32([0.5, 0.5, 0.9]), 2).tolist()
        [2, 1]
    """
    return np.lexsort((rows, -scores))[:k].astype(np.int64)


def exact_search(
    queries: FloatArray, gallery: FloatArray, k: int, keep: npt.NDArray[np.bool_] | None = None
) -> Ranking:
    """Find the ``k`` nearest gallery rows of each query.

    Args:
        queries: (Q, D) float32.
        gallery: (G, D) float32.
        k: The number of answers, at least 1.
        keep: (Q, G) bool, which rows may answer which query; None allows all.

    Returns:
        A ranking of min(k, G) answers; a query has fewer where fewer rows may answer.

    Raises:
        DataError: The shapes do not fit, or ``k`` is below 1.

    Example:
        >>> ranking = exact_search(np.float32([[1, 0]]), np.float32([[0, 1], [1, 0], [0.6, 0.8]]), k=2)
        >>> ranking.rows.tolist()
        [[1, 2]]
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise DataError(f"search: expected (Q, D) and (G, D) vectors, got {queries.shape} and {gallery.shape}")
    if keep is not None and keep.shape != (len(queries), len(gallery)):
        raise DataError(f"search: expected keep {(len(queries), len(gallery))}, got {keep.shape}")
    if k < 1:
        raise DataError(f"search: expected k of at least 1, got {k}")
    ranks = min(k, len(gallery))
    ranking = empty_ranking(len(queries), ranks)
    for i, query in enumerate(queries):
        allowed = np.arange(len(gallery)) if keep is None else np.flatnonzero(keep[i])
        scores = score_rows(query, gallery)[allowed]
        best = best_positions(allowed, scores, ranks)
        ranking.rows[i, : len(best)] = allowed[best]
        ranking.scores[i, : len(best)] = scores[best]
        ranking.counts[i] = len(best)
    return Ranking(ranking.rows, ranking.scores, ranking.counts)


def empty_ranking(queries: int, ranks: int) -> Ranking:
    """Return a ranking (Q, K) without answers, to be filled and then checked by making a new ``Ranking`` of it."""
    shape = (queries, ranks)
    return Ranking(np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32), np.zeros(queries, np.int64))
