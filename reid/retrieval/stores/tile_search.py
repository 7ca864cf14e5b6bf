"""Fast exact search: matrix products of tiles, and a bound that few rows pass.

The scores of a tile of rows with all queries are one matrix product. A row whose score is below the k-th best of a
query so far cannot be among its k best, so most scores are only compared with that bound. The remaining rows are scored
again as :mod:`reid.retrieval.exact` defines it, so that the answers are those of the exact search to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from reid.records import FloatArray, IntArray
from reid.retrieval.exact import score_rows
from reid.retrieval.stores.tiles import Tile

FEW_QUERIES = 8  # for at most so many queries, inner products one by one are faster than a matrix product
TILE_ROWS, TILE_ROWS_OF_FEW = 4096, 65536
QUERIES_AT_ONCE = 256
SHORTEST_RUN, SHORTEST_RUN_OF_FEW = 1024, 128  # rows; a matrix product copies shorter runs, which costs it little
PARTS_PER_RANK = 16  # into which a row of scores is cut to find a lower bound of its k-th best
PAIRS_PER_RANK = 8  # that are collected before they are reduced to the k best of each query
UNIT_ROUNDOFF = 2.0**-24  # of float32
LONGEST_ROW = 1.01  # the bound on rounding errors holds for vectors of unit length

VectorsAt = Callable[[IntArray], tuple[IntArray, FloatArray]]
"""Returns the numbers (E,) and the vectors (E, D) of the rows at given positions (E,)."""


@dataclass
class _Candidates:
    """Rows that may still be among the k best of each of Q queries."""

    queries: FloatArray
    k: int
    vectors_at: VectorsAt
    pairs: list[tuple[IntArray, IntArray, FloatArray]] = field(default_factory=list)  # query, position, score
    collected: int = 0

    def __post_init__(self) -> None:
        count, dimension = self.queries.shape
        lengths = np.sqrt(np.einsum("qd,qd->q", self.queries, self.queries, dtype=np.float64))
        # A float32 inner product is wrong by at most D u |x| |y| (Higham 2002, eq. 3.5), two by twice that.
        self.margin = (2 * (dimension + 2) * UNIT_ROUNDOFF * LONGEST_ROW * lengths).astype(np.float32)
        self.best = np.full((count, self.k), -np.inf, np.float32)

    def offer(self, first: int, scores: FloatArray, tile: Tile, offset: int) -> None:
        """Take the rows of a tile that may be among the k best.

        Args:
            first: The first of the queries that were scored.
            scores: (B, T) float32, their scores with the rows of the tile; -inf for rows that may not answer.
            tile: The tile.
            offset: What is added to a row of the tile's array to get its position in the store.
        """
        part = slice(first, first + len(scores))
        bound = self.best[part].min(axis=1)
        if np.isinf(bound).any():
            bound = np.maximum(bound, _lower_bound(scores, self.k))
        hits = np.flatnonzero(scores >= np.maximum(bound - self.margin[part], np.finfo(np.float32).min)[:, None])
        query, column = np.divmod(hits, scores.shape[1])
        score = scores[query, column]
        self.pairs.append((first + query, offset + tile.rows_at(column), score))
        self.collected += len(hits)
        _update_best(self.best, first + query, score)
        if self.collected > PAIRS_PER_RANK * self.k * len(self.queries):
            self.reduce()

    def reduce(self) -> tuple[IntArray, IntArray, FloatArray, IntArray]:
        """Keep the k best rows of each query, by their exact scores.

        Returns:
            Queries (E,), which ascend, row numbers (E,), exact scores (E,), best first, and how many each query has.
        """
        query, position, score = (np.concatenate(parts) for parts in zip(*self.pairs, strict=True))
        near = score >= (self.best.min(axis=1) - self.margin)[query]
        query, position = query[near], position[near]
        order = np.argsort(query, kind="stable")
        query, position = query[order], position[order]
        numbers, score = self._score_exactly(query, position)
        order = np.lexsort((numbers, -score, query))
        query, position, numbers, score = query[order], position[order], numbers[order], score[order]
        counts = np.bincount(query, minlength=len(self.queries))
        rank = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = rank < self.k
        self.pairs = [(query[kept], position[kept], score[kept])]
        self.collected = int(np.count_nonzero(kept))
        return query[kept], numbers[kept], score[kept], np.minimum(counts, self.k)

    def _score_exactly(self, query: IntArray, position: IntArray) -> tuple[IntArray, FloatArray]:
        """Return the numbers (E,) and exact scores (E,) of pairs that are sorted by query."""
        numbers, scores = np.empty(len(query), np.int64), np.empty(len(query), np.float32)
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        for start, stop in zip(starts, np.append(starts[1:], len(query)), strict=True):
            numbers[start:stop], vectors = self.vectors_at(position[start:stop])
            scores[start:stop] = score_rows(self.queries[query[start]], vectors)
        return numbers, scores


def find_nearest(
    queries: FloatArray, k: int, tiles: Iterable[tuple[int, Tile]], vectors_at: VectorsAt
) -> tuple[IntArray, FloatArray, IntArray]:
    """Find the ``k`` best rows of each query among the rows of tiles.

    Args:
        queries: (Q, D) float32, at least one.
        k: The number of rows; there are at least so many.
        tiles: The offset of each tile (its first array row's position in the store) and the tile.
        vectors_at: Returns numbers and vectors by position.

    Returns:
        Row numbers (Q, k) int64, scores (Q, k) float32 and the number of answers (Q,), best first; of equal scores, the
        lower number comes first.
    """
    found = _Candidates(queries, k, vectors_at)
    for offset, tile in tiles:
        picked = None if tile.positions is None or len(queries) <= FEW_QUERIES else _pick(tile)
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            scores = _score_tile(queries[first : first + QUERIES_AT_ONCE], tile, picked)
            found.offer(first, scores, tile, offset)
    rows, scores = np.zeros((len(queries), k), np.int64), np.full((len(queries), k), -np.inf, np.float32)
    query, numbers, score, counts = found.reduce()
    rank = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows[query, rank], scores[query, rank] = numbers, score
    return rows, scores, counts


def tile_settings(queries: int) -> tuple[int, int]:
    """Return the largest number of rows of a tile, and the shortest run that is not copied, for so many queries."""
    few = queries <= FEW_QUERIES
    return (TILE_ROWS_OF_FEW, SHORTEST_RUN_OF_FEW) if few else (TILE_ROWS, SHORTEST_RUN)


def _pick(tile: Tile) -> FloatArray:
    return np.take(tile.vectors, tile.rows_at(np.arange(tile.size)), axis=0)


def _score_tile(queries: FloatArray, tile: Tile, picked: FloatArray | None) -> FloatArray:
    """Return the float32 scores (B, T); -inf for rows that may not answer."""
    if len(queries) <= FEW_QUERIES:
        from reid.retrieval.faiss_index import inner_products

        scores = inner_products(queries, tile.vectors, tile.start, tile.stop, tile.positions)
    else:
        scores = queries @ (tile.vectors[tile.start : tile.stop] if picked is None else picked).T
    if tile.mask is not None:
        scores[:, ~tile.mask] = -np.inf
    return scores


def _lower_bound(scores: FloatArray, k: int) -> FloatArray:
    """Return (B,) a close lower bound of the k-th largest of ``scores`` (B, T), in one pass; -inf where T < k.

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


def _update_best(best: FloatArray, query: IntArray, score: FloatArray) -> None:
    """Replace lower scores among the ``best`` (Q, k) by new scores (E,) of queries (E,), which ascend."""
    queries, first, counts = np.unique(query, return_index=True, return_counts=True)
    wide = np.full((len(queries), best.shape[1] + counts.max(initial=0)), -np.inf, np.float32)
    wide[:, : best.shape[1]] = best[queries]
    target = np.repeat(np.arange(len(queries)), counts)
    wide[target, best.shape[1] + np.arange(len(query)) - first[target]] = score
    best[queries] = np.partition(wide, -best.shape[1], axis=1)[:, -best.shape[1] :]
