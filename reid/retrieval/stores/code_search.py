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
from typing import Protocol

import numpy as np

from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.stores.byte_products import ByteProducts, has_byte_products
from reid.retrieval.stores.products import Float32Products, Float64Array
from reid.retrieval.stores.row_codes import ByteArray, CodedQueries, RowCodes
from reid.retrieval.stores.store import BoolArray
from reid.retrieval.stores.tile_search import QUERIES_AT_ONCE, VectorsAt, rank_exactly, update_best
from reid.retrieval.stores.tiles import runs_of, tiles_of

FEW_QUERIES = 2  # for at most so many queries, reading the codes row by row is faster than a matrix product
TILE_ROWS = 8192
SHORTEST_RUN, LARGEST_WASTE = 256, 1.3  # see reid.retrieval.stores.tiles
MOST_RUNS = 8  # that are scanned one by one; more runs are scanned together, passing over the rows between them
SCANNED_PER_RANK, SCANNED_AT_LEAST = 8, 256  # rows that a scan keeps for each answer, at first
MOST_PAIRS_PER_RANK, MOST_PAIRS = 64, 2**20  # of a query and a row that may be among its best; see ``_Pairs``
LARGEST_SHARE = 4  # a scan that would keep more than this fraction of the rows is not worth its cost


@dataclass(frozen=True)
class CodedRows:
    """The rows of one segment.

    Args:
        codes: Their codes.
        vectors: (N, D) float32.
        offset: What is added to a row to get its position in the store.
        mask: (N,) bool, which rows of the codes may answer; None: all.
    """

    codes: RowCodes
    vectors: FloatArray
    offset: int
    mask: BoolArray | None

    def positions(self, codes: IntArray) -> IntArray:
        """Return the positions (E,) in the store of some rows (E,) of the codes."""
        return self.offset + self.codes.rows_at(codes)


def codes_help(queries: int) -> bool:
    """Whether so many queries are searched faster by codes than by vectors."""
    return queries <= FEW_QUERIES or has_byte_products()


class CodedScorer(Protocol):
    """How Q queries are scored with the rows of segments: roughly by codes, closely in float32."""

    @property
    def errors(self) -> Float64Array:
        """(Q,), twice how wrong a close score of each query may be."""

    def coded(self, number: int) -> CodedQueries:
        """Return the queries, to be compared with the codes of a segment."""

    def close_scores(self, query: IntArray, position: IntArray) -> Float64Array:
        """Return the close scores (E,) of queries (E,), which ascend, with the rows at positions (E,)."""


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

    def close_scores(self, query: IntArray, position: IntArray) -> Float64Array:
        """Return the inner products (E,) in the arithmetic of float32."""
        return _rough_scores(self.queries, self.segments, query, position)


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
        floor: (Q,), lower bounds of the k-th best score of each query, where some are known.

    Returns:
        Queries (E,), which ascend, and positions (E,); None where the codes say too little.
    """
    pairs = _Pairs(queries, k, np.full(queries, -np.inf, np.float32) if floor is None else floor)
    is_found = (_scan if queries <= FEW_QUERIES else _multiply)(scorer, pairs, segments)
    return _scored_closely(scorer, pairs) if is_found else None


@dataclass
class _Pairs:
    """Rows that may be among the k best of some queries: pairs of a query and a position, with their upper bounds.

    Where very many rows have nearly the same scores, codes cannot tell them apart, and ``are_too_many`` becomes true.
    """

    queries: int
    k: int
    floor: FloatArray  # (Q,), lower bounds of the k-th best scores that are known from the start
    parts: list[tuple[IntArray, IntArray, FloatArray]] = field(default_factory=list)
    collected: int = 0

    def __post_init__(self) -> None:
        self.best = np.full((self.queries, self.k), -np.inf, np.float32)  # the largest lower bounds
        self.bound = self.floor  # the smallest of them

    def take(self, query: IntArray, position: IntArray, score: FloatArray, errors: Float64Array) -> None:
        """Add pairs (E,), whose queries ascend; the scores of a query are wrong by at most its ``errors`` (Q,)."""
        error = (1.001 * errors).astype(np.float32)[query]
        self.parts.append((query, position, score + error))
        update_best(self.best, query, score - error)
        self.bound = np.maximum(self.best.min(axis=1), self.floor)
        self.collected += len(query)
        if self.collected > self._most:
            query, position, upper = self._near()
            self.parts, self.collected = [(query, position, upper)], len(query)

    @property
    def are_too_many(self) -> bool:
        """Whether there are more pairs than memory should be spent on."""
        return self.collected > self._most

    @property
    def _most(self) -> int:
        return MOST_PAIRS_PER_RANK * self.k * self.queries + MOST_PAIRS

    def _near(self) -> tuple[IntArray, IntArray, FloatArray]:
        """Return the pairs whose upper bounds reach the bounds of their queries."""
        query, position, upper = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
        near = np.flatnonzero(upper >= self.bound[query])
        return query[near], position[near], upper[near]

    def by_query(self) -> tuple[IntArray, IntArray, FloatArray]:
        """Return the pairs that may be among the best, with their upper bounds; the queries ascend."""
        query, position, upper = self._near()
        order = np.argsort(query.astype(np.min_scalar_type(self.queries)), kind="stable")
        return query[order], position[order], upper[order]


def _scored_closely(scorer: CodedScorer, pairs: _Pairs) -> tuple[IntArray, IntArray]:
    """Return the pairs that may be among the best after their vectors were scored in float32.

    The ``k`` rows of the largest upper bounds come first: their scores are the bound that most others do not reach.
    """
    k, errors = pairs.k, scorer.errors
    query, position, upper = pairs.by_query()
    is_first = np.zeros(len(query), np.bool_)
    ends = np.cumsum(np.bincount(query, minlength=pairs.queries))
    for start, stop in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        is_first[start + np.argpartition(-upper[start:stop], k - 1)[:k]] = True
    scores = np.full(len(query), -np.inf)
    scores[is_first] = scorer.close_scores(query[is_first], position[is_first])
    bound = np.maximum(pairs.bound, scores[is_first].reshape(-1, k).min(axis=1) - errors)
    others = np.flatnonzero(~is_first & (upper >= bound[query]))
    scores[others] = scorer.close_scores(query[others], position[others])
    reach = is_first | (scores >= (bound - errors)[query])
    return query[reach], position[reach]


def _rough_scores(
    queries: FloatArray, segments: Sequence[CodedRows], query: IntArray, position: IntArray
) -> Float64Array:
    """Return the scores (E,), in the arithmetic of float32, of queries, which ascend, with the rows at positions."""
    from reid.retrieval.faiss_index import pair_products

    scores = np.empty(len(position), np.float64)
    owner = np.searchsorted([segment.offset for segment in segments], position, side="right") - 1
    for number, segment in enumerate(segments):
        here = np.flatnonzero(owner == number)
        if len(here):
            scores[here] = pair_products(queries, segment.vectors, query[here], position[here] - segment.offset)
    return scores


@dataclass
class _Piece:
    """Codes that are scanned at once, and the best ones that a scan has kept."""

    owner: int
    start: int
    codes: ByteArray
    mask: BoolArray | None
    size: int
    rows: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    scores: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))

    def scan(self, i: int, queries: CodedQueries, n: int) -> None:
        """Keep about the ``n`` best rows of query ``i``."""
        from reid.retrieval.faiss_index import largest_sums

        rows, sums = largest_sums(queries.whole[i], self.codes, min(n, self.size), self.mask)
        self.rows, self.scores = self.start + rows, queries.scores(i, sums)


def _scan(scorer: CodedScorer, pairs: _Pairs, segments: Sequence[CodedRows]) -> bool:
    """Compare a few queries with the codes row by row; false where a scan would have to keep too many rows."""
    k = pairs.k
    coded = [scorer.coded(number) for number in range(len(segments))]
    total = sum(len(segment.codes.codes) for segment in segments)
    for i in range(pairs.queries):
        pieces = [piece for owner, segment in enumerate(segments) for piece in _pieces(owner, segment)]
        errors = [float(coded[piece.owner].errors[i]) for piece in pieces]
        n, open_pieces = SCANNED_PER_RANK * k + SCANNED_AT_LEAST, list(range(len(pieces)))
        while open_pieces:
            if n > max(total // LARGEST_SHARE, SCANNED_PER_RANK * k + SCANNED_AT_LEAST):
                return False
            for one in open_pieces:
                pieces[one].scan(i, coded[pieces[one].owner], n)
            bound = max(_bound_of(scorer, i, k, segments, pieces), float(pairs.floor[i]))
            open_pieces = [
                one
                for one in open_pieces
                if len(pieces[one].rows) < pieces[one].size and pieces[one].scores.min() + errors[one] >= bound
            ]
            n *= 4
        for piece in pieces:
            position = segments[piece.owner].positions(piece.rows)
            pairs.take(np.full(len(position), i), position, piece.scores, coded[piece.owner].errors)
        pairs.bound[i] = max(pairs.bound[i], bound)
    return True


def _bound_of(scorer: CodedScorer, i: int, k: int, segments: Sequence[CodedRows], pieces: Sequence[_Piece]) -> float:
    """Return a lower bound of the k-th best score of query ``i``: that of the ``k`` rows that look best by codes."""
    scores = np.concatenate([piece.scores for piece in pieces])
    if len(scores) < k:
        return -np.inf
    position = np.concatenate([segments[piece.owner].positions(piece.rows) for piece in pieces])
    best = scorer.close_scores(np.full(k, i), position[np.argpartition(-scores, k - 1)[:k]])
    return float(best.min() - 2 * scorer.errors[i])


def _pieces(owner: int, segment: CodedRows) -> list[_Piece]:
    """Return the codes of a segment that may answer: its runs, or where there are many, all of them with a mask."""
    codes, mask = segment.codes.codes, segment.mask
    if mask is None:
        return [_Piece(owner, 0, codes, None, len(codes))]
    starts, stops = runs_of(mask, gap=0)
    if len(starts) <= MOST_RUNS:
        return [_Piece(owner, a, codes[a:b], None, b - a) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    first, last = int(starts[0]), int(stops[-1])
    return [_Piece(owner, first, codes[first:last], mask[first:last], int(np.count_nonzero(mask)))]


def _multiply(scorer: CodedScorer, pairs: _Pairs, segments: Sequence[CodedRows]) -> bool:
    """Compare many queries with the codes, a tile at a time; false where too many rows have nearly equal scores."""
    queries, k, products = pairs.queries, pairs.k, ByteProducts()
    for number, segment in enumerate(segments):
        products.take(scorer.coded(number))
        count = len(segment.codes.codes)
        size = -(-count // max(round(count / TILE_ROWS), 1))  # tiles of one size, none of a few rows
        for tile in tiles_of(segment.codes.codes, segment.mask, size, SHORTEST_RUN, LARGEST_WASTE):
            for first in range(0, queries, QUERIES_AT_ONCE):
                stop = min(first + QUERIES_AT_ONCE, queries)
                query, column, score = products.above(first, stop, tile, pairs.bound[first:stop], k)
                position = segment.positions(tile.rows_at(column))
                pairs.take(query, position, score, products.queries.errors)
                if pairs.are_too_many:
                    return False
    return True
