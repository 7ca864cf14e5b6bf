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
from reid.retrieval.exact import best_first, scores_of

BLOCK_BYTES = 64 * 2**20
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 256  # below 64 rows the product re-reads the vectors too often
PARTS_PER_PLACE = 16
LONGEST = 1.001  # of a row: the bound on rounding below holds for unit length


@dataclass(frozen=True)
class Neighbours:
    """The K nearest rows of each of Q vectors.

    ``rows`` (Q, K) int64, nearest first, of equal scores the lower row; ``scores`` (Q, K) float32,
    inner products; ``least`` (Q,) float32: the smallest inner product with any row.
    """

    rows: IntArray
    scores: FloatArray
    least: FloatArray


def nearest_rows(queries: FloatArray, vectors: FloatArray, k: int, *, themselves: bool = False) -> Neighbours:
    """The min(k, N) rows of ``vectors`` (N, D) nearest to each of ``queries`` (Q, D); float32, unit length.

    ``themselves``: query i is row i, and stands in place 0 even where others equal it.
    """
    _check(queries, vectors, k)
    places = min(k, len(vectors))
    found = Neighbours(
        np.empty((len(queries), places), np.int64),
        np.empty((len(queries), places), np.float32),
        np.empty(len(queries), np.float32),
    )
    size = int(np.clip(BLOCK_BYTES // (4 * len(vectors)), SMALLEST_BLOCK, LARGEST_BLOCK))
    buffer = np.empty((min(size, len(queries)), len(vectors)), np.float32)
    for start in range(0, len(queries), size):
        where = slice(start, min(start + size, len(queries)))
        part = queries[where]
        scores = np.matmul(part, vectors.T, out=buffer[: len(part)])  # (B, N)
        found.least[where] = scores.min(axis=1)
        own = np.arange(where.start, where.stop) if themselves else None
        found.rows[where], found.scores[where] = _nearest(part, vectors, scores, places, own)
    return found


def _check(queries: FloatArray, vectors: FloatArray, k: int) -> None:
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise DataError(f"neighbours: expected (Q, D) and (N, D) vectors, got {queries.shape} and {vectors.shape}")
    if k < 1 or len(vectors) == 0:
        raise DataError(f"neighbours: expected k of at least 1 and some rows, got {k} and {len(vectors)}")
    for name, rows in (("queries", queries), ("vectors", vectors)):
        if rows.dtype != np.float32 or not np.all(np.einsum("nd,nd->n", rows, rows) < LONGEST**2):  # false for NaN
            raise DataError(f"neighbours: expected {name} as float32 rows of unit length, got {rows.dtype}")


def _nearest(
    queries: FloatArray, vectors: FloatArray, scores: FloatArray, k: int, own: IntArray | None
) -> tuple[IntArray, FloatArray]:
    # A sum of D products of unit vectors is off by at most D 2^-24, so the order of two scores
    # may be wrong by twice that (Higham 2002, eq. 3.5).
    margin = np.float32(queries.shape[1] * 2.0**-23)
    if own is not None:
        scores[np.arange(len(own)), own] = np.inf
    may_be = np.flatnonzero(scores >= _bound(scores, k)[:, None] - margin)
    query, row = np.divmod(may_be, scores.shape[1])
    score = scores[query, row]
    order = np.lexsort((-score, query))  # stable: of equal scores the lower row is first
    query, row, score = query[order], row[order], score[order]
    starts = np.searchsorted(query, np.arange(len(scores)))
    gaps = np.diff(score, append=-np.inf) > -margin
    gaps[np.append(starts[1:], len(query)) - 1] = False  # the last candidate of a query has no successor
    close = np.flatnonzero(np.add.reduceat(gaps & (score < np.inf), starts))
    ends = np.append(starts[1:], len(query))
    for i in close:
        some = slice(starts[i] + (own is not None), ends[i])
        exact = scores_of(queries[i], vectors[row[some]])
        better = best_first(row[some], exact, len(exact))
        row[some], score[some] = row[some][better], exact[better]
    places = starts[:, None] + np.arange(k)
    rows, best = row[places], score[places]
    if own is not None:
        best[:, 0] = np.einsum("nd,nd->n", queries, queries)
    return rows, best


def _bound(scores: FloatArray, k: int) -> FloatArray:
    """(B,) a lower bound of the k-th largest of ``scores`` (B, N), close to it, in one pass.

    The row is cut into parts; k parts have a maximum of at least the k-th largest maximum.
    """
    parts = k * PARTS_PER_PLACE
    depth = scores.shape[1] // parts
    if depth > 1:
        scores = scores[:, : depth * parts].reshape(len(scores), depth, parts).max(axis=1)
    bound: FloatArray = np.partition(scores, -k, axis=1)[:, -k].copy()
    return bound
