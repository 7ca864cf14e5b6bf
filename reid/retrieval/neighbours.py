"""The k nearest rows of many vectors, exactly, in bounded memory and without sorting whole rows.

A float32 matrix product finds the rows that may be among the k nearest. Where its rounding could change which rows
these are, or their order, the scores are computed again as :mod:`reid.retrieval.exact` defines them. The lists are
therefore those of the exact search on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.exact import score_pairs

BLOCK_BYTES = 64 * 2**20
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 256  # rows; with fewer than 64 the product reads the vectors too often
PARTS_PER_RANK = 16  # into which a row is cut to find a lower bound of its k-th best score
PAIRS_PER_RANK = 8  # kept before lists are shortened to k; only nearly equal rows need more
LONGEST_ROW = 1.001  # the bound on rounding errors below holds for rows of unit length

Pairs = tuple[IntArray, IntArray, FloatArray]
"""Queries (E,) int64, rows (E,) int64 and their scores (E,) float32; the score of a row with itself is infinite."""


@dataclass(frozen=True)
class Neighbours:
    """The K nearest rows of each of Q vectors.

    Args:
        rows: (Q, K) int64, nearest first; of equal scores, the lower row comes first.
        scores: (Q, K) float32, their inner products.
        least: (Q,) float32, the smallest inner product with any row.
    """

    rows: IntArray
    scores: FloatArray
    least: FloatArray


def nearest_rows(queries: FloatArray, vectors: FloatArray, k: int) -> Neighbours:
    """Find the nearest rows of each query.

    Args:
        queries: (Q, D) float32 of unit length.
        vectors: (N, D) float32 of unit length.
        k: The number of neighbours, at least 1.

    Returns:
        The min(k, N) nearest rows of each query.

    Raises:
        DataError: The shapes, types or lengths are wrong.

    Example:
        >>> nearest_rows(np.float32([[1, 0]]), np.float32([[0, 1], [0.6, 0.8], [1, 0]]), k=2).rows.tolist()
        [[2, 1]]
    """
    _check(queries, vectors, k)
    k, count, margin = min(k, len(vectors)), len(queries), _rounding_margin(vectors)
    size = _block_size(len(vectors))
    buffer = np.empty((min(size, count), len(vectors)), np.float32)
    least, lists = np.empty(count, np.float32), list[Pairs]()
    for start in range(0, count, size):
        part = queries[start : start + size]
        scores = np.matmul(part, vectors.T, out=buffer[: len(part)])  # (B, N)
        least[start : start + size] = scores.min(axis=1)
        query, row, score = _pairs_above(scores, lower_bound(scores, k)[:, None] - margin)
        lists.append(_keep_nearest((start + query, row, score), queries, vectors, k))
    return _neighbours(lists, least, k)


def nearest_among(vectors: FloatArray, k: int) -> Neighbours:
    """Find the nearest rows of every row among all rows.

    A row is its own first neighbour, even where other rows are equal to it. Every pair is scored once: a block of rows
    is multiplied with itself and with all later rows, for the lists of both. The k best scores of a row so far decide
    which rows may still enter its list.

    Args:
        vectors: (N, D) float32 of unit length.
        k: The number of neighbours, at least 1.

    Returns:
        The min(k, N) nearest rows of each row.

    Raises:
        DataError: The shape, type or lengths are wrong.

    Example:
        >>> nearest_among(np.float32([[0, 1], [0.6, 0.8], [1, 0]]), k=2).rows.tolist()
        [[0, 1], [1, 0], [2, 1]]
    """
    _check(vectors, vectors, k)
    k, count, margin = min(k, len(vectors)), len(vectors), _rounding_margin(vectors)
    size = _block_size(count)
    buffer = np.empty(min(size, count) * count, np.float32)
    best, least = np.full((count, k), -np.inf, np.float32), np.full(count, np.inf, np.float32)
    lists: list[Pairs] = []
    for start in range(0, count, size):
        stop = min(start + size, count)
        shape = (stop - start, count - start)
        scores = np.matmul(vectors[start:stop], vectors[start:].T, out=buffer[: shape[0] * shape[1]].reshape(shape))
        np.minimum(least[start:], scores.min(axis=0), out=least[start:])
        np.minimum(least[start:stop], scores.min(axis=1), out=least[start:stop])
        np.fill_diagonal(scores, np.inf)
        bound = np.maximum(best[start:stop].min(axis=1), lower_bound(scores, k))
        query, row, score = _pairs_above(scores, bound[:, None] - margin)
        lists.append((start + query, start + row, score))
        _update_best(best, start + query, score)
        later = scores[:, stop - start :]
        if start == 0 and stop < count and stop >= k:  # later rows have no scores yet, so take all of them
            best[stop:] = np.partition(np.ascontiguousarray(later.T), -k, axis=1)[:, -k:]
        row, query, score = _pairs_above(later, best[stop:].min(axis=1) - margin)
        lists.append((stop + query, start + row, score))
        if start or stop < k:
            _update_best(best, stop + query, score)
        if sum(len(score) for *_, score in lists) > PAIRS_PER_RANK * k * count:
            lists = [_keep_nearest(_concatenate(lists), vectors, vectors, k)]
    found = _neighbours([_keep_nearest(_concatenate(lists), vectors, vectors, k)], least, k)
    found.scores[:, 0] = np.einsum("nd,nd->n", vectors, vectors)
    return found


def _block_size(vectors: int) -> int:
    return int(np.clip(BLOCK_BYTES // (4 * vectors), SMALLEST_BLOCK, LARGEST_BLOCK))


def _rounding_margin(vectors: FloatArray) -> np.float32:
    """Return the largest difference of two float32 products whose exact values are in the other order.

    The product of two unit vectors is wrong by at most D 2^-24, two products by twice that (Higham 2002, eq. 3.5).
    """
    return np.float32(vectors.shape[1] * 2.0**-23)


def _check(queries: FloatArray, vectors: FloatArray, k: int) -> None:
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise DataError(f"neighbours: expected (Q, D) and (N, D) vectors, got {queries.shape} and {vectors.shape}")
    if k < 1 or len(vectors) == 0:
        raise DataError(f"neighbours: expected k of at least 1 and some rows, got {k} and {len(vectors)}")
    for name, rows in (("queries", queries), ("vectors", vectors)):
        if rows.dtype != np.float32 or not np.all(np.einsum("nd,nd->n", rows, rows) < LONGEST_ROW**2):  # false for NaN
            raise DataError(f"neighbours: expected {name} as float32 rows of unit length, got {rows.dtype}")


def _pairs_above(scores: FloatArray, bounds: FloatArray) -> Pairs:
    """Return the pairs of ``scores`` (B, N) that are not below ``bounds``, which is broadcast."""
    query, row = np.divmod(np.flatnonzero(scores >= bounds), max(1, scores.shape[1]))
    return query, row, scores[query, row]


def _update_best(best: FloatArray, query: IntArray, score: FloatArray) -> None:
    """Replace lower scores among the ``best`` (N, K) by new scores (E,) of their queries (E,)."""
    order = np.argsort(query, kind="stable")
    queries, first, counts = np.unique(query[order], return_index=True, return_counts=True)
    wide = np.full((len(queries), best.shape[1] + counts.max(initial=0)), -np.inf, np.float32)
    wide[:, : best.shape[1]] = best[queries]
    target = np.repeat(np.arange(len(queries)), counts)
    wide[target, best.shape[1] + np.arange(len(order)) - first[target]] = score[order]
    best[queries] = np.partition(wide, -best.shape[1], axis=1)[:, -best.shape[1] :]


def _keep_nearest(pairs: Pairs, queries: FloatArray, vectors: FloatArray, k: int) -> Pairs:
    """Keep the k nearest of each query among ``pairs``, sorted by query and in the order of the exact search."""
    query, row, score = pairs
    order, margin = np.lexsort((row, -score, query)), _rounding_margin(vectors)
    starts, ends = _spans(query[order])
    bounds = score[order][np.minimum(starts + k, ends) - 1] - margin
    order = order[score[order] >= np.repeat(bounds, ends - starts)]
    query, row, score = query[order], row[order], score[order]
    starts, ends = _spans(query)
    close = np.append(score[1:] + margin > score[:-1], False)
    close[ends - 1] = False  # the last pair of a query has no successor
    close[1:] |= close[:-1]
    close &= score < np.inf
    score[close] = score_pairs(queries, vectors, query[close], row[close])
    order = np.lexsort((row, -score, query))
    query, row, score = query[order], row[order], score[order]
    kept = np.arange(len(query)) - np.repeat(starts, ends - starts) < k
    return query[kept], row[kept], score[kept]


def _spans(query: IntArray) -> tuple[IntArray, IntArray]:
    """Return where the pairs of each query start and end, both (Q,); ``query`` (E,) is sorted."""
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    return starts, np.append(starts[1:], len(query))


def _concatenate(lists: list[Pairs]) -> Pairs:
    query, row, score = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    return query, row, score


def _neighbours(lists: list[Pairs], least: FloatArray, k: int) -> Neighbours:
    _, rows, scores = _concatenate(lists)
    return Neighbours(rows.reshape(-1, k), scores.reshape(-1, k), least)


def lower_bound(scores: FloatArray, k: int) -> FloatArray:
    """Return (B,) a close lower bound of the k-th largest of ``scores`` (B, N), in one pass; -inf where N < k.

    Each row is cut into parts. The k-th largest of their maxima is a lower bound, because k parts reach it.
    """
    if scores.shape[1] < k:
        return np.full(len(scores), -np.inf, np.float32)
    parts = k * PARTS_PER_RANK
    depth = scores.shape[1] // parts
    if depth > 1:
        scores = scores[:, : depth * parts].reshape(len(scores), depth, parts).max(axis=1)
    bound: FloatArray = np.partition(scores, -k, axis=1)[:, -k].copy()
    return bound
