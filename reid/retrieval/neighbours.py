"""The k nearest rows of many vectors, exactly, in bounded memory and without sorting whole rows.

A matrix product in float32 finds who may be among the k nearest; where its rounding could change who
is, or in which order, the scores are computed again as ``exact`` defines them.  So the lists are
those of ``exact`` on any machine.  Knows vectors only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.exact import scores_of_pairs

BLOCK_BYTES = 64 * 2**20
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 256  # below 64 rows the product re-reads the vectors too often
PARTS_PER_PLACE = 16
PAIRS_PER_PLACE = 8  # that are held before lists are cut to their length; only rows that are nearly equal need more
LONGEST = 1.001  # of a row: the bound on rounding below holds for unit length

Pairs = tuple[IntArray, IntArray, FloatArray]
"""Queries (E,) int64, rows (E,) int64 and their scores (E,) float32; infinite for a row with itself."""


@dataclass(frozen=True)
class Neighbours:
    """The K nearest rows of each of Q vectors.

    ``rows`` (Q, K) int64, nearest first, of equal scores the lower row; ``scores`` (Q, K) float32,
    inner products; ``least`` (Q,) float32: the smallest inner product with any row.
    """

    rows: IntArray
    scores: FloatArray
    least: FloatArray


def nearest_rows(queries: FloatArray, vectors: FloatArray, k: int) -> Neighbours:
    """The min(k, N) rows of ``vectors`` (N, D) nearest to each of ``queries`` (Q, D); float32, unit length."""
    _check(queries, vectors, k)
    k, count, margin = min(k, len(vectors)), len(queries), _margin(vectors)
    size = _block_size(len(vectors))
    buffer = np.empty((min(size, count), len(vectors)), np.float32)
    least, lists = np.empty(count, np.float32), list[Pairs]()
    for start in range(0, count, size):
        part = queries[start : start + size]
        scores = np.matmul(part, vectors.T, out=buffer[: len(part)])  # (B, N)
        least[start : start + size] = scores.min(axis=1)
        query, row, score = _reaching(scores, _bound(scores, k)[:, None] - margin)
        lists.append(_cut((start + query, row, score), queries, vectors, k))
    return _neighbours(lists, least, k)


def nearest_among(vectors: FloatArray, k: int) -> Neighbours:
    """The min(k, N) rows of ``vectors`` (N, D) nearest to each of them; float32, unit length.

    A row stands in its own place 0, even where others equal it.  Every pair is scored once: a block of rows against
    itself and all behind it, for the lists of both.  The k best scores that a row has seen say what may still enter
    its list.
    """
    _check(vectors, vectors, k)
    k, count, margin = min(k, len(vectors)), len(vectors), _margin(vectors)
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
        bound = np.maximum(best[start:stop].min(axis=1), _bound(scores, k))
        query, row, score = _reaching(scores, bound[:, None] - margin)
        lists.append((start + query, start + row, score))
        _remember(best, start + query, score)
        later = scores[:, stop - start :]
        if start == 0 and stop < count and stop >= k:  # nothing is known of them: all their scores at once
            best[stop:] = np.partition(np.ascontiguousarray(later.T), -k, axis=1)[:, -k:]
        row, query, score = _reaching(later, best[stop:].min(axis=1) - margin)
        lists.append((stop + query, start + row, score))
        if start or stop < k:
            _remember(best, stop + query, score)
        if sum(len(score) for *_, score in lists) > PAIRS_PER_PLACE * k * count:
            lists = [_cut(_joined(lists), vectors, vectors, k)]
    found = _neighbours([_cut(_joined(lists), vectors, vectors, k)], least, k)
    found.scores[:, 0] = np.einsum("nd,nd->n", vectors, vectors)
    return found


def _block_size(vectors: int) -> int:
    return int(np.clip(BLOCK_BYTES // (4 * vectors), SMALLEST_BLOCK, LARGEST_BLOCK))


def _margin(vectors: FloatArray) -> np.float32:
    """By how much two products may be in the wrong order.

    A sum of D products of unit vectors is off by at most D 2^-24, two of them by twice that (Higham 2002, eq. 3.5).
    """
    return np.float32(vectors.shape[1] * 2.0**-23)


def _check(queries: FloatArray, vectors: FloatArray, k: int) -> None:
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise DataError(f"neighbours: expected (Q, D) and (N, D) vectors, got {queries.shape} and {vectors.shape}")
    if k < 1 or len(vectors) == 0:
        raise DataError(f"neighbours: expected k of at least 1 and some rows, got {k} and {len(vectors)}")
    for name, rows in (("queries", queries), ("vectors", vectors)):
        if rows.dtype != np.float32 or not np.all(np.einsum("nd,nd->n", rows, rows) < LONGEST**2):  # false for NaN
            raise DataError(f"neighbours: expected {name} as float32 rows of unit length, got {rows.dtype}")


def _reaching(scores: FloatArray, bounds: FloatArray) -> Pairs:
    """The pairs of ``scores`` (B, N) that are not below ``bounds``, which is broadcast."""
    query, row = np.divmod(np.flatnonzero(scores >= bounds), max(1, scores.shape[1]))
    return query, row, scores[query, row]


def _remember(best: FloatArray, query: IntArray, score: FloatArray) -> None:
    """Let new scores (E,) take the place of lower ones among the ``best`` (N, K) of their queries (E,)."""
    order = np.argsort(query, kind="stable")
    who, first, counts = np.unique(query[order], return_index=True, return_counts=True)
    wide = np.full((len(who), best.shape[1] + counts.max(initial=0)), -np.inf, np.float32)
    wide[:, : best.shape[1]] = best[who]
    line = np.repeat(np.arange(len(who)), counts)
    wide[line, best.shape[1] + np.arange(len(order)) - first[line]] = score[order]
    best[who] = np.partition(wide, -best.shape[1], axis=1)[:, -best.shape[1] :]


def _cut(pairs: Pairs, queries: FloatArray, vectors: FloatArray, k: int) -> Pairs:
    """The k nearest of each query among ``pairs``, sorted by query, nearest first, in the order of ``exact``."""
    query, row, score = pairs
    order, margin = np.lexsort((row, -score, query)), _margin(vectors)
    starts, ends = _spans(query[order])
    bounds = score[order][np.minimum(starts + k, ends) - 1] - margin
    order = order[score[order] >= np.repeat(bounds, ends - starts)]
    query, row, score = query[order], row[order], score[order]
    starts, ends = _spans(query)
    close = np.append(score[1:] + margin > score[:-1], False)
    close[ends - 1] = False  # the last of a query has no successor
    close[1:] |= close[:-1]
    close &= score < np.inf
    score[close] = scores_of_pairs(queries, vectors, query[close], row[close])
    order = np.lexsort((row, -score, query))
    query, row, score = query[order], row[order], score[order]
    kept = np.arange(len(query)) - np.repeat(starts, ends - starts) < k
    return query[kept], row[kept], score[kept]


def _spans(query: IntArray) -> tuple[IntArray, IntArray]:
    """Where the pairs of each query start and end, (Q,) both; ``query`` (E,) is sorted."""
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    return starts, np.append(starts[1:], len(query))


def _joined(lists: list[Pairs]) -> Pairs:
    query, row, score = (np.concatenate(parts) for parts in zip(*lists, strict=True))
    return query, row, score


def _neighbours(lists: list[Pairs], least: FloatArray, k: int) -> Neighbours:
    _, rows, scores = _joined(lists)
    return Neighbours(rows.reshape(-1, k), scores.reshape(-1, k), least)


def _bound(scores: FloatArray, k: int) -> FloatArray:
    """(B,) a lower bound of the k-th largest of ``scores`` (B, N), close to it, in one pass; -inf where N < k.

    The row is cut into parts; k parts have a maximum of at least the k-th largest maximum.
    """
    if scores.shape[1] < k:
        return np.full(len(scores), -np.inf, np.float32)
    parts = k * PARTS_PER_PLACE
    depth = scores.shape[1] // parts
    if depth > 1:
        scores = scores[:, : depth * parts].reshape(len(scores), depth, parts).max(axis=1)
    bound: FloatArray = np.partition(scores, -k, axis=1)[:, -k].copy()
    return bound
