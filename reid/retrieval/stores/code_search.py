"""Fast exact search by short codes: whole numbers choose the rows whose vectors are read.

Sums of products with the codes of a row bound its score from above and below. A row whose upper bound is below the k-th
best lower bound of a query cannot be among its k best, so its vector is never read. The vectors of the others are
scored in float32, and those that may still be among the best as :mod:`reid.retrieval.exact` defines it, so that the
answers are those of the exact search to the last bit.

One or two queries are compared with the codes row by row, which reads them at the speed of the memory. For more, one
matrix product of bytes is faster where the processor has instructions for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.stores.byte_products import ByteProducts, has_byte_products
from reid.retrieval.stores.code_scan import CodedScorer, find_by_scan, rough_scores, scan_near
from reid.retrieval.stores.products import Float32Products, Float64Array
from reid.retrieval.stores.row_codes import CodedQueries, CodedRows
from reid.retrieval.stores.store import BoolArray
from reid.retrieval.stores.tile_search import QUERIES_AT_ONCE, VectorsAt, rank_exactly
from reid.retrieval.stores.tiles import tiles_of

FEW_QUERIES = 2  # for at most so many queries, reading the codes row by row is faster than a matrix product
TILE_ROWS = 8192
SHORTEST_RUN, LARGEST_WASTE = 256, 1.3  # see reid.retrieval.stores.tiles
MOST_PADDED = 4  # times the numbers of all queries that are compared at once; more are compared query by query
SHARPEN_EVERY = 3  # the bounds are raised when more than so many times the rows of the last time have been compared
MOST_PAIRS_PER_RANK, MOST_PAIRS = 64, 2**20  # of a query and a row that may be among its best; see ``_Pairs``


def codes_help(queries: int) -> bool:
    """Whether so many queries are searched faster by codes than by vectors."""
    return queries <= FEW_QUERIES or has_byte_products()


@dataclass(frozen=True)
class InnerProducts:
    """Scores queries (Q, D) float32 by inner products."""

    queries: FloatArray
    segments: Sequence[CodedRows]

    @cached_property
    def errors(self) -> Float64Array:
        """(Q,), twice how wrong an inner product in float32 may be."""
        errors: Float64Array = Float32Products(self.queries).errors.astype(np.float64)
        return errors

    def coded(self, number: int) -> CodedQueries:
        """Return the queries in whole numbers."""
        return CodedQueries.of(self.queries, self.segments[number].codes)

    def close_scores(self, query: IntArray, position: IntArray) -> FloatArray:
        """Return the inner products (E,) in the arithmetic of float32."""
        return rough_scores(self.queries, self.segments, query, position)


def find_by_codes(queries: FloatArray, k: int, segments: Sequence[CodedRows], vectors_at: VectorsAt) -> Ranking | None:
    """Find the ``k`` best rows of each query.

    Args:
        queries: (Q, D) float32, at least one.
        k: The number of rows; at least so many may answer.
        segments: The rows.
        vectors_at: Returns numbers and vectors by position.

    Returns:
        A ranking whose rows are row numbers; None where the codes say too little, and the vectors are to be searched.
    """
    if len(queries) <= FEW_QUERIES:
        return find_by_scan(queries, k, segments, vectors_at)
    found = near_by_codes(InnerProducts(queries, segments), len(queries), k, segments)
    return None if found is None else rank_exactly(queries, *found, vectors_at, k).ranking(k)


def near_by_codes(
    scorer: CodedScorer, queries: int, k: int, segments: Sequence[CodedRows], floor: FloatArray | None = None
) -> tuple[IntArray, IntArray] | None:
    """Find the rows that may be among the ``k`` best of each query.

    Args:
        scorer: Scores the queries with the rows of the segments.
        queries: The number Q of queries, at least 1.
        k: The number of rows; at least so many may answer.
        segments: The rows.
        floor: (Q,), lower bounds of the k-th best scores that are known from the start; None: nothing is known.

    Returns:
        Queries (E,), which ascend, and positions (E,); None where the codes say too little.
    """
    floor = np.full(queries, -np.inf, np.float32) if floor is None else floor
    if queries <= FEW_QUERIES:
        return scan_near(scorer, floor, k, segments)
    pairs = _multiply(scorer, floor, k, segments)
    return None if pairs is None else pairs.reaching()


@dataclass
class _Pairs:
    """Rows that may be among the k best of some queries: pairs of a query and a position, with their upper bounds.

    Where very many rows have nearly the same scores, codes cannot tell them apart, and ``are_too_many`` becomes true.
    """

    scorer: CodedScorer
    floor: FloatArray  # (Q,), lower bounds of the k-th best scores that are known from the start
    k: int
    parts: list[tuple[IntArray, IntArray, FloatArray]] = field(default_factory=list)
    collected: int = 0

    def __post_init__(self) -> None:
        self.queries = len(self.floor)
        self.bound = self.floor.astype(np.float64)  # what the k-th best score of each query reaches
        self._rounding = self.scorer.errors

    def take(self, query: IntArray, position: IntArray, score: FloatArray, errors: Float64Array) -> None:
        """Add pairs (E,), whose queries ascend; the scores of a query are wrong by at most its ``errors`` (Q,)."""
        self.parts.append((query, position, score + (1.001 * errors).astype(np.float32)[query]))
        self.collected += len(query)

    @property
    def are_too_many(self) -> bool:
        """Whether there are more pairs than memory should be spent on."""
        return self.collected > MOST_PAIRS_PER_RANK * self.k * self.queries + MOST_PAIRS

    def sharpen(self) -> tuple[BoolArray, FloatArray | Float64Array] | None:
        """Raise the bounds to what the vectors of the k largest upper bounds of each query say, and drop pairs below.

        Returns:
            For each pair that is left, in the order of the queries, whether it is one of these, and the scores (Q, k)
            of these in float32; None where a query has fewer than k pairs.
        """
        query, position, upper = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
        order = np.argsort(query.astype(np.min_scalar_type(self.queries)), kind="stable")
        query, position, upper = query[order], position[order], upper[order]
        counts = np.bincount(query, minlength=self.queries)
        if counts.min() < self.k:
            return None
        is_first = np.zeros(len(query), np.bool_)
        is_first[_largest_of_each(upper, counts, self.k)] = True
        scores = self.scorer.close_scores(query[is_first], position[is_first]).reshape(-1, self.k)
        np.maximum(self.bound, scores.min(axis=1) - self._rounding, out=self.bound)
        near = np.flatnonzero(is_first | (upper >= self.bound[query]))
        self.parts, self.collected = [(query[near], position[near], upper[near])], len(near)
        return is_first[near], scores

    def reaching(self) -> tuple[IntArray, IntArray]:
        """Return the pairs, a query and a position (E,), that may be among the best by their scores in float32."""
        sharpened = self.sharpen()
        if sharpened is None:
            raise ValueError("expected at least k rows that may answer")
        is_first, found = sharpened
        ((query, position, _),) = self.parts
        scores = np.empty(len(query), found.dtype)
        scores[is_first] = found.reshape(-1)
        scores[~is_first] = self.scorer.close_scores(query[~is_first], position[~is_first])
        reach = is_first | (scores >= (self.bound - self._rounding)[query])
        return query[reach], position[reach]


def _largest_of_each(values: FloatArray, counts: IntArray, k: int) -> IntArray:
    """Return where the k largest of each run of ``values`` (E,) stand; the runs have ``counts`` (Q,) of k at least."""
    starts, width = np.cumsum(counts) - counts, int(counts.max())
    if len(counts) * width > MOST_PADDED * len(values):  # some runs are much longer than others
        parts = zip(starts.tolist(), counts.tolist(), strict=True)
        return np.concatenate([at + np.argpartition(values[at : at + size], -k)[-k:] for at, size in parts])
    padded = np.full((len(counts), width), -np.inf, np.float32)
    padded[np.arange(width) < counts[:, None]] = values
    return (starts[:, None] + np.argpartition(padded, -k, axis=1)[:, -k:]).reshape(-1)


def _multiply(scorer: CodedScorer, floor: FloatArray, k: int, segments: Sequence[CodedRows]) -> _Pairs | None:
    """Compare many queries with the codes, a tile at a time; None where too many rows have nearly equal scores."""
    pairs, products, queries, seen, sharpened = _Pairs(scorer, floor, k), ByteProducts(), len(floor), 0, 0
    for number, segment in enumerate(segments):
        products.take(scorer.coded(number))
        count = len(segment.codes.codes)
        size = -(-count // max(round(count / TILE_ROWS), 1))  # tiles of one size, none of a few rows
        for tile in tiles_of(segment.codes.codes, segment.mask, size, SHORTEST_RUN, LARGEST_WASTE):
            if seen > SHARPEN_EVERY * sharpened or pairs.are_too_many:
                pairs.sharpen()
                sharpened = seen
            if pairs.are_too_many:
                return None
            for first in range(0, queries, QUERIES_AT_ONCE):
                stop = min(first + QUERIES_AT_ONCE, queries)
                query, column, score = products.above(first, stop, tile, pairs.bound[first:stop], k)
                pairs.take(query, segment.positions(tile.rows_at(column)), score, products.queries.errors)
            seen += tile.size
    return pairs
