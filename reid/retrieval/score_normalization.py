"""Score normalization per pair of cameras: CSLS and the adaptive symmetric s-norm.

Two crops of different people by the same camera are often more similar than two crops of one person by two cameras, and
the crops of some cameras are similar to everything.  Both methods compare a score with the scores that the query and
the gallery row have with the crops of the other's camera anyway (:mod:`reid.retrieval.cohorts`), so that scores of all
pairs of cameras can be ranked together and compared with one threshold.  No labels are used.

With s the inner product, and for a vector x and a camera c the mean m(x, c) and the deviation d(x, c) of the k largest
inner products of x with the cohort of c:

- ``csls``: 2 s - m(q, camera of g) - m(g, camera of q), after Conneau et al., "Word translation without parallel
  data", ICLR 2018, here for each pair of cameras;
- ``snorm``: the mean of (s - m(q, camera of g)) / d(q, camera of g) and (s - m(g, camera of q)) / d(g, camera of q), as
  in speaker verification.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, unknown_name
from reid.records import Embeddings, FloatArray, IntArray
from reid.retrieval.cohort_rows import COHORT_LIMIT, CohortRows
from reid.retrieval.cohorts import CohortStatistics, measure_cohorts

NONE = "none"
SMALLEST_DEVIATION = 1e-3  # of similarities; less is rounding, and crops that all look the same


@dataclass(frozen=True, eq=False)
class SideTerms:
    """The statistics of one side of a block of pairs: means and deviations (A, B) float32, looked up by camera."""

    mean: FloatArray
    deviation: FloatArray


def _csls(scores: FloatArray, query: SideTerms, gallery: SideTerms) -> FloatArray:
    scores *= 2
    scores -= query.mean
    scores -= gallery.mean
    return scores


def _snorm(scores: FloatArray, query: SideTerms, gallery: SideTerms) -> FloatArray:
    normalized: FloatArray = (scores - query.mean) / query.deviation
    scores -= gallery.mean
    scores /= gallery.deviation
    normalized += scores
    normalized *= np.float32(0.5)
    return normalized


METHODS: dict[str, Callable[[FloatArray, SideTerms, SideTerms], FloatArray]] = {"csls": _csls, "snorm": _snorm}
SCORE_NORMS = (NONE, *METHODS)
USES_DEVIATION = ("snorm",)  # the other methods take means only, and no memory for deviations


def check_score_norm(name: str) -> str:
    """Return the name of a score normalization, "none" among them; DataError lists the known ones."""
    if name not in SCORE_NORMS:
        raise DataError(unknown_name("score normalization", name, SCORE_NORMS))
    return name


@dataclass(frozen=True, eq=False)
class NormalizedScores:
    """Normalized scores of Q queries against G gallery rows, computed a block of queries at a time.

    A call with (start, stop) returns the scores (stop - start, G) float32 of these queries; a larger score means more
    similar.  :func:`reid.evaluation.score_metrics` takes such an object.  Use :func:`normalize_scores`,
    :func:`normalize_among` or :func:`normalize_embeddings` to get one.

    Args:
        queries: The Q queries.
        gallery: The G gallery rows.
        cohort: The rows that the cohorts of the cameras are chosen from.
        query_statistics: The statistics (Q, C) of the queries.
        gallery_statistics: The statistics (G, C) of the gallery rows, for the same cameras.
    """

    queries: CohortRows
    gallery: CohortRows
    cohort: CohortRows
    query_statistics: CohortStatistics
    gallery_statistics: CohortStatistics

    def __call__(self, start: int, stop: int) -> FloatArray:
        products = self.queries.vectors[start:stop] @ self.gallery.vectors.T
        return self.normalize(products, np.arange(start, stop))

    @property
    def method(self) -> str:
        """The method, a key of ``METHODS``."""
        return self.gallery_statistics.method

    @cached_property
    def query_columns(self) -> IntArray:
        """The column (Q,) int64 of the statistics that holds for each query's camera; -1 where none does."""
        return self.gallery_statistics.columns(self.queries.cameras)

    @cached_property
    def gallery_columns(self) -> IntArray:
        """The column (G,) int64 of the statistics that holds for each row's camera; -1 where none does."""
        return self.gallery_statistics.columns(self.gallery.cameras)

    @cached_property
    def is_applied(self) -> bool:
        """Whether scores are normalized; without enough crops for a cohort, they stay as they are."""
        return bool((self.query_columns >= 0).all() and (self.gallery_columns >= 0).all())

    @property
    def stamp(self) -> str:
        """The method and its parameters, to be reported with every number computed from these scores."""
        if not self.is_applied:
            return "too few crops for a cohort: scores as they are"
        used = np.unique(np.concatenate([self.query_columns, self.gallery_columns]))
        low, high = self.gallery_statistics.k[used].min(), self.gallery_statistics.k[used].max()
        pooled = any(self.gallery_statistics.cameras[column].endswith("/") for column in used.tolist())
        fallback = "; all cameras together for unknown and small ones" if pooled else ""
        return f"{self.method} per camera pair, k {low if low == high else f'{low} to {high}'}{fallback}"

    def normalize(self, scores: FloatArray, queries: IntArray, rows: IntArray | None = None) -> FloatArray:
        """Normalize plain scores of some queries with some gallery rows.

        Args:
            scores: (B, R) float32, inner products; the array is overwritten.
            queries: (B,) int64, the queries.
            rows: (R,) int64, the gallery rows; None means all.

        Returns:
            (B, R) float32; the plain scores where there is no cohort to compare with.
        """
        if not self.is_applied:
            return scores
        columns = self.gallery_columns if rows is None else self.gallery_columns[rows]
        query = _looked_up(self.query_statistics.select(queries), columns)
        gallery = self.gallery_statistics if rows is None else self.gallery_statistics.select(rows)
        other = _looked_up(gallery, self.query_columns[queries])
        return METHODS[self.method](scores, query, SideTerms(other.mean.T, other.deviation.T))

    def normalize_pairs(self, query: IntArray, row: IntArray) -> FloatArray:
        """Compute the normalized scores (E,) float32 of pairs of queries and gallery rows, both (E,) int64."""
        scores: FloatArray = np.einsum("nd,nd->n", self.queries.vectors[query], self.gallery.vectors[row])
        if not self.is_applied:
            return scores
        sides = (
            _looked_up_pairs(self.query_statistics, query, self.gallery_columns[row]),
            _looked_up_pairs(self.gallery_statistics, row, self.query_columns[query]),
        )
        return METHODS[self.method](scores, *sides)

    def joined(self) -> NormalizedScores:
        """Return the scores of queries and gallery rows, one after the other, with each other."""
        rows = CohortRows.joined(self.queries, self.gallery)
        statistics = CohortStatistics.joined(self.query_statistics, self.gallery_statistics)
        return NormalizedScores(rows, rows, self.cohort, statistics, statistics)

    def with_queries(self, vectors: FloatArray) -> NormalizedScores:
        """Return the scores of the same queries with other vectors (Q, D), such as expanded ones."""
        queries = CohortRows(vectors, self.queries.cameras, self.queries.keys, self.queries.images)
        statistics = measure_cohorts(queries, self.cohort, self.method)
        return NormalizedScores(queries, self.gallery, self.cohort, statistics, self.gallery_statistics)


def _looked_up(statistics: CohortStatistics, columns: IntArray) -> SideTerms:
    """Return the statistics (N, M) of N vectors toward the cameras of M columns; without any, they change nothing."""
    mean = np.take(statistics.mean, columns, axis=1)
    if statistics.method not in USES_DEVIATION:
        mean = np.nan_to_num(mean)
        return SideTerms(mean, mean)
    return usable_terms(mean, np.take(statistics.deviation, columns, axis=1))


def _looked_up_pairs(statistics: CohortStatistics, rows: IntArray, columns: IntArray) -> SideTerms:
    """Return the statistics (E,) of a vector toward the camera of a column, for E pairs."""
    return usable_terms(statistics.mean[rows, columns], statistics.deviation[rows, columns])


def usable_terms(mean: FloatArray, deviation: FloatArray) -> SideTerms:
    """Return statistics that can be subtracted and divided by; those that are missing change nothing."""
    deviation = np.maximum(np.nan_to_num(deviation, nan=1.0), np.float32(SMALLEST_DEVIATION))
    return SideTerms(np.nan_to_num(mean), deviation)


def normalize_scores(
    queries: CohortRows,
    gallery: CohortRows,
    method: str = "csls",
    *,
    k: int | None = None,
    limit: int = COHORT_LIMIT,
    statistics: CohortStatistics | None = None,
    cohort: CohortRows | None = None,
) -> NormalizedScores:
    """Normalize the scores of queries with gallery rows per pair of cameras.

    Args:
        queries: The queries.
        gallery: The gallery rows.
        method: "csls" or "snorm".
        k: How many of the nearest crops of a camera count; by default the method and the camera decide.
        limit: The most crops of a camera that a vector is compared with.
        statistics: The statistics of the gallery rows, where they have been measured before.
        cohort: The rows that the cohorts are chosen from; by default the gallery.

    Returns:
        The normalized scores.

    Raises:
        DataError: The method is unknown, ``k`` is below 1, or the vectors have different lengths.

    Example:
        >>> vectors = np.float32([[1, 0], [0.8, 0.6], [0.6, 0.8]])
        >>> gallery = CohortRows.of_cameras(["hall"] * 3, vectors)
        >>> normalize_scores(CohortRows.of_cameras(["door"], vectors[:1]), gallery).is_applied
        False
    """
    if method not in METHODS:
        raise DataError(unknown_name("score normalization", method, METHODS))
    if k is not None and k < 1:
        raise DataError(f"score normalization: expected k of at least 1, got {k}")
    source = gallery if cohort is None else cohort
    of_gallery = statistics or measure_cohorts(gallery, source, method, k=k, limit=limit)
    of_queries = of_gallery if queries is gallery else measure_cohorts(queries, source, method, k=k, limit=limit)
    return NormalizedScores(queries, gallery, source, of_queries, of_gallery)


def normalize_among(
    vectors: FloatArray,
    cameras: Sequence[str] | npt.NDArray[np.generic],
    method: str = "csls",
    *,
    k: int | None = None,
    limit: int = COHORT_LIMIT,
) -> NormalizedScores:
    """Normalize the scores of all rows with each other; a row never stands in its own cohort.

    Args:
        vectors: (N, D) float32 of unit length.
        cameras: (N,) names or numbers of cameras; "" is an unknown camera.
        method: "csls" or "snorm".
        k: How many of the nearest crops of a camera count; by default the method and the camera decide.
        limit: The most crops of a camera that a vector is compared with.

    Returns:
        The normalized scores (N, N), which are symmetric.

    Example:
        >>> vectors = np.eye(64, dtype=np.float32)
        >>> scores = normalize_among(vectors, ["door", "hall"] * 32)
        >>> scores(0, 2).shape, scores.stamp
        ((2, 64), 'csls per camera pair, k 3')
    """
    rows = CohortRows.of_cameras(cameras, vectors)
    return normalize_scores(rows, rows, method, k=k, limit=limit)


def normalize_embeddings(
    queries: Embeddings, gallery: Embeddings, method: str = "csls", *, k: int | None = None
) -> NormalizedScores:
    """Normalize the scores of embedded queries with an embedded gallery; the samples name cameras and categories."""
    first, second = (CohortRows.of_samples(side.samples, side.vectors) for side in (queries, gallery))
    return normalize_scores(first, second, method, k=k)
