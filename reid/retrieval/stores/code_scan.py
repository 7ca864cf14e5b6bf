"""Comparison of one or two queries with short codes, row by row, as fast as the processor reads the codes.

A scan keeps the rows of a query that look best by their codes. The vectors of the ``k`` best of these give a bound that
the other answers must reach. If the scan has kept every row whose codes reach it, the vectors of the kept rows decide;
otherwise it is repeated and keeps more. Everything else is a few operations on some hundred numbers, because a scan of
16,000 rows takes no longer than a hundred calls of NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.exact import best_positions, score_rows
from reid.retrieval.stores.products import Float32Products, Float64Array
from reid.retrieval.stores.row_codes import ByteArray, CodedQueries, CodedRows
from reid.retrieval.stores.store import BoolArray
from reid.retrieval.stores.tile_search import VectorsAt
from reid.retrieval.stores.tiles import runs_of

MOST_RUNS = 8  # that are scanned one by one; more runs are scanned together, passing over the rows between them
SCANNED_PER_RANK, SCANNED_AT_LEAST = 4, 64  # rows that a scan keeps for each answer, at first
MORE_SCANNED = 4  # times as many rows are kept when a scan is repeated
LARGEST_SHARE = 4  # a scan that would keep more than this fraction of the rows is not worth its cost

CloseScores = Callable[[IntArray], npt.NDArray[Any]]


class CodedScorer(Protocol):
    """How Q queries are scored with the rows of segments: roughly by codes, closely in float32."""

    @property
    def errors(self) -> Float64Array:
        """(Q,), twice how wrong a close score of each query may be."""

    def coded(self, number: int) -> CodedQueries:
        """Return the queries, to be compared with the codes of a segment."""

    def close_scores(self, query: IntArray, position: IntArray) -> FloatArray | Float64Array:
        """Return the close scores (E,) of queries (E,), which ascend, with the rows at positions (E,)."""


@dataclass(frozen=True)
class _Piece:
    """Codes that are scanned at once, from row ``start`` of the segment ``owner``; ``size`` of the rows may answer."""

    owner: int
    start: int
    codes: ByteArray
    mask: BoolArray | None
    size: int


@dataclass(frozen=True)
class _Kept:
    """The rows (E,) of a piece that a scan has kept, their scores by codes (E,), and how wrong these may be."""

    rows: IntArray
    scores: FloatArray
    error: float

    def may_lack(self, piece: _Piece, bound: float) -> bool:
        """Whether a row that the scan has left out may have a score of at least ``bound``."""
        return len(self.rows) < piece.size and (not len(self.rows) or float(self.scores.min()) + self.error >= bound)


def find_by_scan(queries: FloatArray, k: int, segments: Sequence[CodedRows], vectors_at: VectorsAt) -> Ranking | None:
    """Find the ``k`` best rows of each query.

    Args:
        queries: (Q, D) float32, a few.
        k: The number of rows; at least so many may answer.
        segments: The rows.
        vectors_at: Returns numbers and vectors by position.

    Returns:
        A ranking whose rows are row numbers; None where a scan would have to keep too many rows.
    """
    scan = _Scans(segments, [CodedQueries.of(queries, segment.codes) for segment in segments], k)
    rounding = Float32Products(queries).errors.astype(np.float64)
    rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for i in range(len(queries)):
        close = partial(rough_scores, queries[i : i + 1], segments, None)
        position = scan.positions_near(i, float(rounding[i]), close)
        if position is None:
            return None
        numbers, vectors = vectors_at(position)
        found = score_rows(queries[i], vectors)
        best = best_positions(numbers, found, k)
        rows[i], scores[i] = numbers[best], found[best]
    return Ranking(rows, scores, np.full(len(queries), k, np.int64))


def scan_near(
    scorer: CodedScorer, floor: FloatArray, k: int, segments: Sequence[CodedRows]
) -> tuple[IntArray, IntArray] | None:
    """Find the rows that may be among the ``k`` best of each query.

    Args:
        scorer: Scores the queries with the rows of the segments.
        floor: (Q,), lower bounds of the k-th best scores of the queries, a few.
        k: The number of rows; at least so many may answer.
        segments: The rows.

    Returns:
        Queries (E,), which ascend, and positions (E,); None where a scan would have to keep too many rows.
    """
    scan, found = _Scans(segments, [scorer.coded(number) for number in range(len(segments))], k), []
    for i, least in enumerate(floor.tolist()):
        position = scan.positions_near(i, float(scorer.errors[i]), partial(_close_scores, scorer, i), least)
        if position is None:
            return None
        found.append(position)
    return np.repeat(np.arange(len(floor)), [len(one) for one in found]), np.concatenate(found)


def _close_scores(scorer: CodedScorer, i: int, position: IntArray) -> npt.NDArray[Any]:
    return scorer.close_scores(np.full(len(position), i), position)


class _Scans:
    """Scans of the same rows for one query after the other.

    Args:
        segments: The rows.
        coded: The queries, to be compared with the codes of each segment.
        k: The number of rows that are wanted.
    """

    def __init__(self, segments: Sequence[CodedRows], coded: Sequence[CodedQueries], k: int):
        self._segments, self._coded, self._k = segments, coded, k
        self._pieces = [piece for owner, segment in enumerate(segments) for piece in _pieces(owner, segment)]

    def positions_near(self, i: int, rounding: float, close: CloseScores, floor: float = -np.inf) -> IntArray | None:
        """Return the positions of the rows that may be among the best of query ``i``, at least as many as are wanted.

        Args:
            i: The query.
            rounding: Twice the largest error of a close score.
            close: Returns the close scores (E,) of the query with the rows at positions (E,).
            floor: A lower bound of the score of the last row that is wanted.

        Returns:
            (E,) int64; None where a scan would have to keep too many rows.
        """
        segments, pieces, k = self._segments, self._pieces, self._k
        n = SCANNED_PER_RANK * k + SCANNED_AT_LEAST
        most = max(sum(len(segment.codes.codes) for segment in segments) // LARGEST_SHARE, n)
        kept = [_Kept(np.empty(0, np.int64), np.empty(0, np.float32), 0.0)] * len(pieces)
        waiting = list(range(len(pieces)))
        while True:
            for one in waiting:
                kept[one] = _scan(i, self._coded[pieces[one].owner], pieces[one], n)
            position = _joined(
                [segments[piece.owner].positions(of.rows) for piece, of in zip(pieces, kept, strict=True)]
            )
            by_codes = _joined([of.scores for of in kept])
            bound = floor
            if len(position) >= k:
                best = np.argpartition(by_codes, -k)[-k:] if len(by_codes) > k else slice(None)
                bound = max(floor, float(close(position[best]).min()) - rounding)
            waiting = [one for one, piece in enumerate(pieces) if kept[one].may_lack(piece, bound)]
            if not waiting:
                break
            n *= MORE_SCANNED
            if n > most:
                return None
        upper = _joined([of.scores + np.float32(1.001 * of.error) for of in kept])
        near: IntArray = position[upper >= bound]
        found = close(near)
        reach: IntArray = near[found >= np.partition(found, -k)[-k] - 2 * rounding]
        return reach


def _scan(i: int, queries: CodedQueries, piece: _Piece, n: int) -> _Kept:
    """Keep about the ``n`` best rows of query ``i``."""
    from reid.retrieval.faiss_index import largest_sums

    rows, sums = largest_sums(queries.whole[i], piece.codes, min(n, piece.size), piece.mask)
    return _Kept(piece.start + rows, queries.scores(i, sums), float(queries.errors[i]))


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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


def rough_scores(
    queries: FloatArray, segments: Sequence[CodedRows], query: IntArray | None, position: IntArray
) -> FloatArray:
    """Return the scores (E,), in the arithmetic of float32, of pairs of a query and a row.

    Args:
        queries: (Q, D) float32.
        segments: The rows.
        query: (E,) int64, the query of each pair, ascending; None: the first one.
        position: (E,) int64, the position of the row of each pair.
    """
    from reid.retrieval.faiss_index import inner_products, pair_products

    def of_segment(segment: CodedRows, here: IntArray | slice) -> FloatArray:
        rows = position[here] - segment.offset if segment.offset else position[here]
        if query is None:
            first: FloatArray = inner_products(queries[:1], segment.vectors, 0, 0, np.ascontiguousarray(rows))[0]
            return first
        return pair_products(queries, segment.vectors, query[here], rows)

    if len(segments) == 1:
        return of_segment(segments[0], slice(None))
    scores = np.empty(len(position), np.float32)
    owner = np.searchsorted([segment.offset for segment in segments], position, side="right") - 1
    for number in np.unique(owner).tolist():
        here = np.flatnonzero(owner == number)
        scores[here] = of_segment(segments[number], here)
    return scores
