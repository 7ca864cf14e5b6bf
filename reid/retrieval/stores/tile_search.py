"""Fast exact search: matrix products of tiles, and a bound that few rows pass.

The scores of a tile of rows with all queries are one matrix product. A row whose score is below the k-th best of a
query so far cannot be among its k best, so most scores are only compared with that bound. The remaining rows are scored
again as :mod:`reid.retrieval.exact` defines it, so that the answers are those of the exact search to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.exact import empty_ranking, score_rows
from reid.retrieval.stores.products import FEW_QUERIES, Products, products_of
from reid.retrieval.stores.tiles import Tile

TILE_ROWS, TILE_ROWS_OF_FEW = 4096, 65536
QUERIES_AT_ONCE = 256
SHORTEST_RUN, SHORTEST_RUN_OF_FEW = 1024, 128  # rows; a matrix product copies shorter runs, which costs it little
WASTE, WASTE_OF_FEW = 1.3, 2.2  # rows that are scored for each row that may answer, before rows are picked out
PAIRS_PER_RANK = 8  # that are collected before they are reduced to the k best of each query

VectorsAt = Callable[[IntArray], tuple[IntArray, FloatArray]]
"""Returns the numbers (E,) and the vectors (E, D) of the rows at given positions (E,)."""


@dataclass
class _Candidates:
    """Rows that may still be among the k best of each of Q queries."""

    queries: FloatArray
    k: int
    products: Products
    vectors_at: VectorsAt
    pairs: list[tuple[IntArray, IntArray, FloatArray]] = field(default_factory=list)  # query, position, score
    collected: int = 0

    def __post_init__(self) -> None:
        self.best = np.full((len(self.queries), self.k), -np.inf, np.float32)

    def offer(self, first: int, stop: int, tile: Tile, offset: int) -> None:
        """Take the rows of a tile that may be among the k best of some queries, which the products hold the scores of.

        Args:
            first: The first of the queries.
            stop: The query behind the last.
            tile: The tile.
            offset: What is added to a row of the tile's array to get its position in the store.
        """
        bound = self.best[first:stop].min(axis=1)
        if np.isinf(bound).any():
            bound = np.maximum(bound, self.products.lower_bound(self.k))
        query, column, score = self.products.above(bound - self.products.margin(bound, first, stop))
        self.pairs.append((first + query, offset + tile.rows_at(column), score))
        self.collected += len(query)
        update_best(self.best, first + query, score)
        if self.collected > PAIRS_PER_RANK * self.k * len(self.queries):
            self.reduce()

    def reduce(self) -> RankedPairs:
        """Keep the k best rows of each query, by their exact scores."""
        query, position, score = (np.concatenate(parts) for parts in zip(*self.pairs, strict=True))
        bound = self.best.min(axis=1)
        near = score >= (bound - self.products.margin(bound, 0, len(bound)))[query]
        ranked = rank_exactly(self.queries, query[near], position[near], self.vectors_at, self.k)
        self.pairs = [(ranked.query, ranked.position, ranked.score)]
        self.collected = len(ranked.query)
        return ranked


@dataclass(frozen=True)
class RankedPairs:
    """The best rows of each query, queries in ascending order, and the rows of a query best first.

    Args:
        query: (E,) int64.
        position: (E,) int64, the position of the row in the store.
        number: (E,) int64, its number.
        score: (E,) float32, exact.
        counts: (Q,) int64, how many rows each query has.
    """

    query: IntArray
    position: IntArray
    number: IntArray
    score: FloatArray
    counts: IntArray

    def ranking(self, k: int) -> Ranking:
        """Return the ranking of ``k`` ranks."""
        found = empty_ranking(len(self.counts), k)
        rank = np.arange(len(self.query)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        found.rows[self.query, rank], found.scores[self.query, rank] = self.number, self.score
        return Ranking(found.rows, found.scores, self.counts)


def rank_exactly(
    queries: FloatArray, query: IntArray, position: IntArray, vectors_at: VectorsAt, k: int
) -> RankedPairs:
    """Score pairs of queries and rows exactly, and keep the ``k`` best rows of each query.

    Args:
        queries: (Q, D) float32.
        query: (E,) int64, the query of each pair, in any order.
        position: (E,) int64, the position of the row of each pair.
        vectors_at: Returns numbers and vectors by position.
        k: The number of rows.
    """
    order = np.argsort(query, kind="stable")
    query, position = query[order], position[order]
    numbers, scores = np.empty(len(query), np.int64), np.empty(len(query), np.float32)
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    for start, stop in zip(starts, np.append(starts[1:], len(query)), strict=True):
        numbers[start:stop], vectors = vectors_at(position[start:stop])
        scores[start:stop] = score_rows(queries[query[start]], vectors)
    order = np.lexsort((numbers, -scores, query))
    counts = np.bincount(query, minlength=len(queries))
    rank = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = order[rank < k]
    return RankedPairs(query[order], position[order], numbers[order], scores[order], np.minimum(counts, k))


def find_nearest(queries: FloatArray, k: int, tiles: Iterable[tuple[int, Tile]], vectors_at: VectorsAt) -> Ranking:
    """Find the ``k`` best rows of each query among the rows of tiles.

    Args:
        queries: (Q, D) float32, at least one.
        k: The number of rows; there are at least so many.
        tiles: The offset of each tile (its first array row's position in the store) and the tile.
        vectors_at: Returns numbers and vectors by position.

    Returns:
        A ranking whose rows are row numbers.
    """
    products = products_of(queries)
    found = _Candidates(queries, k, products, vectors_at)
    for offset, tile in tiles:
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            stop = min(first + QUERIES_AT_ONCE, len(queries))
            products.score(first, stop, tile)
            found.offer(first, stop, tile, offset)
    return found.reduce().ranking(k)


def tile_settings(queries: int) -> tuple[int, int, float]:
    """Return the arguments ``rows``, ``shortest_run`` and ``largest_waste`` of ``tiles_of`` for so many queries."""
    if queries <= FEW_QUERIES:
        return TILE_ROWS_OF_FEW, SHORTEST_RUN_OF_FEW, WASTE_OF_FEW
    return TILE_ROWS, SHORTEST_RUN, WASTE


def update_best(best: FloatArray, query: IntArray, score: FloatArray) -> None:
    """Replace lower scores among the ``best`` (Q, k) by new scores (E,) of queries (E,), which ascend."""
    queries, first, counts = np.unique(query, return_index=True, return_counts=True)
    wide = np.full((len(queries), best.shape[1] + counts.max(initial=0)), -np.inf, np.float32)
    wide[:, : best.shape[1]] = best[queries]
    target = np.repeat(np.arange(len(queries)), counts)
    wide[target, best.shape[1] + np.arange(len(query)) - first[target]] = score
    best[queries] = np.partition(wide, -best.shape[1], axis=1)[:, -best.shape[1] :]
