"""Search without an index: slow, obvious and right.  The oracle of every other search.

Knows vectors only.  It also defines what a score is, to the last bit, for all of ``retrieval``:
the inner product summed in float64 and rounded to float32; of equal scores the lower row is first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import FloatArray, IntArray, Ranking

ROWS_AT_ONCE = 4096  # bounds the float64 copy


def scores_of(query: FloatArray, vectors: FloatArray) -> FloatArray:
    """Scores (N,) float32 of ``query`` (D,) against ``vectors`` (N, D).

    einsum adds every row in the same order; a matrix product may not, and then equal rows differ.
    """
    scores = np.empty(len(vectors), np.float32)
    wide = query.astype(np.float64)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        scores[rows] = np.einsum("nd,d->n", vectors[rows].astype(np.float64), wide, optimize=False)
    return scores


def scores_of_pairs(queries: FloatArray, vectors: FloatArray, query: IntArray, row: IntArray) -> FloatArray:
    """Scores (E,) float32 of pairs of ``query`` (E,) and ``row`` (E,): to the last bit those of :func:`scores_of`."""
    scores = np.empty(len(row), np.float32)
    for start in range(0, len(row), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        first, second = queries[query[some]].astype(np.float64), vectors[row[some]].astype(np.float64)
        scores[some] = np.einsum("nd,nd->n", first, second, optimize=False)
    return scores


def best_first(rows: IntArray, scores: FloatArray, k: int) -> IntArray:
    """Positions of the ``k`` best of ``rows`` (N,) with ``scores`` (N,): larger first, then lower row."""
    return np.lexsort((rows, -scores))[:k].astype(np.int64)


def exact_search(
    queries: FloatArray, gallery: FloatArray, k: int, keep: npt.NDArray[np.bool_] | None = None
) -> Ranking:
    """The ``k`` nearest of ``gallery`` (G, D) for each of ``queries`` (Q, D), float32.

    ``keep`` (Q, G) bool says which rows may answer which query; None: all.  The ranking has
    min(k, G) places, and fewer counts where fewer rows may answer.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise DataError(f"search: expected (Q, D) and (G, D) vectors, got {queries.shape} and {gallery.shape}")
    if keep is not None and keep.shape != (len(queries), len(gallery)):
        raise DataError(f"search: expected keep {(len(queries), len(gallery))}, got {keep.shape}")
    if k < 1:
        raise DataError(f"search: expected k of at least 1, got {k}")
    places = min(k, len(gallery))
    ranking = empty_ranking(len(queries), places)
    for i, query in enumerate(queries):
        allowed = np.arange(len(gallery)) if keep is None else np.flatnonzero(keep[i])
        scores = scores_of(query, gallery)[allowed]
        best = best_first(allowed, scores, places)
        ranking.rows[i, : len(best)] = allowed[best]
        ranking.scores[i, : len(best)] = scores[best]
        ranking.counts[i] = len(best)
    return Ranking(ranking.rows, ranking.scores, ranking.counts)


def empty_ranking(queries: int, places: int) -> Ranking:
    """A ranking (Q, K) without any answer yet, to be filled and then checked by a new ``Ranking``."""
    shape = (queries, places)
    return Ranking(np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32), np.zeros(queries, np.int64))
