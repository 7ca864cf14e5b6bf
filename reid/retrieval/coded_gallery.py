"""Exact search by CSLS with short codes: whole numbers choose the rows whose vectors are read.

For one camera of the rows, a CSLS score is twice the inner product, less a number that depends on the query alone, less
a number that the row has toward the camera of the query.  The last one becomes a few more numbers of the codes of the
row, so that the same sums of products that bound an inner product bound the normalized score, and
:mod:`reid.retrieval.stores.code_search` finds the rows as it does for plain scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock

import numpy as np

from reid.records import FloatArray, IntArray
from reid.retrieval.cohort_rows import BoolArray
from reid.retrieval.query_cohorts import CohortCodes, NearCrops
from reid.retrieval.stores.code_search import near_by_codes
from reid.retrieval.stores.products import FLOAT32_ROUNDOFF, Float32Products, Float64Array
from reid.retrieval.stores.row_codes import LARGEST, ROUNDING, ZERO, CodedQueries, CodedRows, RowCodes
from reid.retrieval.stores.tile_search import update_best

MOST_NUMBERS = 4  # of the codes of a row that stand for what is subtracted, for each camera
LARGEST_SHARE = 8  # these numbers are at most this fraction of the codes, where there are few cameras
PADDING = 32  # bytes; codes of such a length are multiplied faster
LARGEST_SCORE = 4.0  # of CSLS

Toward = Callable[[int], FloatArray]
"""Returns what is subtracted from the scores of every row (G,) with queries of the camera of a column."""


@dataclass(frozen=True, eq=False)
class _Subtracted:
    """What is subtracted from the scores of the rows of one camera with queries of another, in whole numbers.

    Attributes:
        centre: The number that the code 0 stands for.
        step: That of a step of the codes.
        error: The largest distance of a number from what its code stands for.
    """

    centre: float
    step: float
    error: float


@dataclass(frozen=True, eq=False)
class CodedGallery:
    """The rows of a gallery in whole numbers, those of one camera after those of another.

    Attributes:
        vectors: (G, D) float32, not a copy.
        order: (G,) int64, the row at each position.
        columns: The column of the statistics that holds for each segment.
        segments: The rows of each camera.
        numbers: How many numbers of the codes belong to each column of the statistics.
        toward: Returns what is subtracted.
        row_columns: (G,) int64, the column that holds for each row.
    """

    vectors: FloatArray
    order: IntArray
    columns: tuple[int, ...]
    segments: tuple[CodedRows, ...]
    numbers: int
    toward: Toward
    row_columns: IntArray
    _subtracted: dict[int, tuple[_Subtracted, ...]] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def of(cls, vectors: FloatArray, columns: IntArray, cameras: int, toward: Toward) -> CodedGallery:
        """Encode the rows of a gallery.

        Args:
            vectors: (G, D) float32 of unit length.
            columns: (G,) int64, the column of the statistics that holds for the camera of each row.
            cameras: The number of columns.
            toward: Returns what is subtracted from the scores of the rows.
        """
        vectors, dimension = np.ascontiguousarray(vectors), vectors.shape[1]
        numbers = min(max(dimension // LARGEST_SHARE // cameras, 1), MOST_NUMBERS)
        width = -(-(dimension + numbers * cameras) // PADDING) * PADDING
        order = np.argsort(columns, kind="stable")
        plain = RowCodes.of(vectors, order)
        codes = np.full((len(order), width), ZERO, np.uint8)
        codes[:, :dimension] = plain.codes
        found, starts = np.unique(columns[order], return_index=True)
        segments = [
            CodedRows(replace(plain, codes=codes[start:stop], order=None), vectors, start, None)
            for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True)
        ]
        return cls(vectors, order, tuple(found.tolist()), tuple(segments), numbers, toward, columns)

    def near(
        self,
        queries: FloatArray,
        means: FloatArray,
        own: IntArray,
        k: int,
        keep: BoolArray | None,
        known: Sequence[NearCrops] = (),
    ) -> tuple[IntArray, IntArray] | None:
        """Find the rows that may be among the ``k`` best of each query by CSLS.

        Args:
            queries: (Q, D) float32, at least one.
            means: (Q, C) float32, what is subtracted from their scores with rows of each camera.
            own: (Q,) int64, the column of the camera of each query.
            k: The number of answers; at least so many rows may answer.
            keep: (G,) bool, which rows may answer; None: all.
            known: Rows whose similarities are known, which bound the k-th best score.

        Returns:
            Queries (E,), which ascend, and rows (E,); None where the codes say too little.
        """
        ascending = np.unique(own).tolist()
        subtracted = {column: self._subtracted_toward(column) for column in ascending}
        segments = self.segments
        if keep is not None:
            kept = keep[self.order]
            masks = [kept[one.offset : one.offset + len(one.codes.codes)] for one in segments]
            segments = tuple(replace(one, mask=mask) for one, mask in zip(segments, masks, strict=True))
        scorer = _NormalizedScorer(self, np.ascontiguousarray(queries), means, own, subtracted)
        found = near_by_codes(scorer, len(queries), k, segments, scorer.floor(k, known, keep))
        return None if found is None else (found[0], self.order[found[1]])

    def _subtracted_toward(self, column: int) -> tuple[_Subtracted, ...]:
        """Return what is subtracted from the rows of each segment, after it was written into their codes."""
        with self._lock:
            if column not in self._subtracted:
                values = self.toward(column)[self.order].astype(np.float64)
                self._subtracted[column] = tuple(self._write(segment, column, values) for segment in self.segments)
            return self._subtracted[column]

    def _write(self, segment: CodedRows, column: int, values: Float64Array) -> _Subtracted:
        codes, first = segment.codes.codes, self.vectors.shape[1] + column * self.numbers
        part = values[segment.offset : segment.offset + len(codes)]
        low, high = float(part.min()), float(part.max())
        centre, step = (low + high) / 2, (high - low) / (2 * LARGEST)
        whole = np.clip(np.rint((part - centre) / (step or 1.0)), -LARGEST, LARGEST)
        codes[:, first : first + self.numbers] = (whole + ZERO).astype(np.uint8)[:, None]
        return _Subtracted(centre, step, float(np.abs(part - (centre + step * whole)).max()))


@dataclass(frozen=True, eq=False)
class _NormalizedScorer:
    """Scores Q queries with the rows of a gallery by CSLS; see ``CodedScorer`` of the search by codes."""

    gallery: CodedGallery
    queries: FloatArray
    means: FloatArray
    own: IntArray
    subtracted: dict[int, tuple[_Subtracted, ...]]

    @cached_property
    def errors(self) -> Float64Array:
        """(Q,), twice how wrong a score in float32 may be."""
        plain: Float64Array = Float32Products(self.queries).errors.astype(np.float64)
        return 2 * plain + 2 * ROUNDING * LARGEST_SCORE

    def coded(self, number: int) -> CodedQueries:
        """Return the queries in whole numbers, to be compared with the rows of one camera."""
        gallery, plain, own = self.gallery, self._plain, self.own
        centre, step, error = self._subtracted[number]
        weights = np.rint(step / (2 * plain.units))
        whole, numbers, dimension = self._whole, gallery.numbers, self.queries.shape[1]
        shares = np.clip(weights[:, None] - LARGEST * np.arange(numbers), 0, LARGEST)
        whole[np.arange(len(whole))[:, None], dimension + own[:, None] * numbers + np.arange(numbers)] = -shares
        constants = 2 * plain.constants - centre - self.means[:, gallery.columns[number]].astype(np.float64)
        rounded = np.abs(step - 2 * plain.units * weights) * LARGEST + error
        largest = self._largest + 2 * plain.units * weights * LARGEST
        sums = largest * (whole.shape[1] + 2) * FLOAT32_ROUNDOFF
        other = ROUNDING * (largest + np.abs(constants) + LARGEST_SCORE)
        errors = 2 * plain.errors + 1.001 * (rounded + sums) + other
        return CodedQueries(whole.copy(), 2 * plain.units, constants, errors)

    @cached_property
    def _subtracted(self) -> Float64Array:
        """(S, 3, Q), centre, step and error of what is subtracted from the rows of each segment with each query."""
        columns, at = np.unique(self.own, return_inverse=True)
        parts = [self.subtracted[column] for column in columns.tolist()]
        table = np.array([[(one.centre, one.step, one.error) for one in part] for part in parts])
        return np.ascontiguousarray(table[at.reshape(-1)].transpose(1, 2, 0))

    @cached_property
    def _plain(self) -> CodedQueries:
        """The queries in whole numbers without what is subtracted, of units for which the weights have room."""
        least = self._subtracted[:, 1].max(axis=0) / (2 * LARGEST * self.gallery.numbers)
        return CodedQueries.of(self.queries, self.gallery.segments[0].codes, least)

    @cached_property
    def _whole(self) -> FloatArray:
        """(Q, W), the whole numbers with room for the weights."""
        whole = np.zeros((len(self.queries), self.gallery.segments[0].codes.codes.shape[1]), np.float32)
        whole[:, : self.queries.shape[1]] = self._plain.whole
        return whole

    @cached_property
    def _largest(self) -> Float64Array:
        """(Q,), the largest sum of products of a query with the numbers of a vector, in scores."""
        lengths = np.sqrt(np.einsum("qd,qd->q", self._plain.whole, self._plain.whole).astype(np.float64))
        largest: Float64Array = 2.002 * self._plain.units * lengths * self.gallery.segments[0].codes.longest_code
        return largest

    def close_scores(self, query: IntArray, position: IntArray) -> Float64Array:
        """Return the scores (E,), in the arithmetic of float32, of queries (E,) with the rows at positions (E,)."""
        from reid.retrieval.faiss_index import pair_products

        rows = self.gallery.order[position]
        return self._normalized(query, rows, pair_products(self.queries, self.gallery.vectors, query, rows))

    def floor(self, k: int, known: Sequence[NearCrops], keep: BoolArray | None) -> FloatArray:
        """Return (Q,) lower bounds of the ``k``-th best scores, from known similarities with rows that may answer."""
        floor = np.full(len(self.queries), -np.inf, np.float32)
        parts = [(one.query, one.row, one.score) for one in known]
        if parts:
            query, row, similarity = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            if keep is not None:
                query, row, similarity = query[keep[row]], row[keep[row]], similarity[keep[row]]
            order = np.argsort(query, kind="stable")
            best = np.full((len(floor), k), -np.inf, np.float32)
            scores = self._normalized(query, row, similarity)[order]
            update_best(best, query[order], scores.astype(np.float32))
            floor = (best.min(axis=1) - 2 * self.errors).astype(np.float32)
        return floor

    def _normalized(self, query: IntArray, rows: IntArray, similarities: FloatArray) -> Float64Array:
        """Return the scores (E,) of queries (E,) and rows (E,) with some similarities (E,)."""
        own, gallery = self.own[query], self.gallery
        scores: Float64Array = 2.0 * similarities.astype(np.float64)
        scores -= self.means[query, gallery.row_columns[rows]]
        for column in np.unique(own).tolist():
            here = own == column
            scores[here] -= gallery.toward(column)[rows[here]]
        return scores


def codes_fit(dimension: int, cameras: int) -> bool:
    """Return whether what is subtracted takes little room in the codes: there are not too many cameras.

    Example:
        >>> codes_fit(512, 7), codes_fit(16, 100)
        (True, False)
    """
    return 2 * cameras <= dimension


@dataclass(frozen=True, eq=False)
class SearchCodes:
    """What a search by CSLS reads instead of vectors.

    Attributes:
        rows: The rows of the gallery.
        cohort: The crops that queries are compared with.
    """

    rows: CodedGallery
    cohort: Sequence[CohortCodes]


@dataclass(eq=False)
class CodesOfSearches:
    """The codes of a gallery, which are made by the second search that can use them, because they cost as much as some.

    Attributes:
        encoded: The codes; None before they were made.
    """

    encoded: SearchCodes | None = None
    _searches: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def get(self, make: Callable[[], SearchCodes]) -> SearchCodes | None:
        """Return the codes; None for the first search."""
        with self._lock:
            self._searches += 1
            if self.encoded is None and self._searches > 1:
                self.encoded = make()
            return self.encoded
