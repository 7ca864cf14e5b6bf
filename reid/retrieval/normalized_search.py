"""Search a gallery by scores that are normalized per pair of cameras, exactly and under any filter.

The scores of a block of queries with all gallery rows are normalized in place, in a few passes over an array that the
matrix product has just written, and the best are computed again exactly.  For an index that is approximate,
:mod:`reid.retrieval.extended_vectors` writes the scores of CSLS as inner products, and
:meth:`NormalizedGallery.rescore` normalizes the candidates that an index has found by plain scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray, Ranking, Sample
from reid.retrieval.cohort_rows import BoolArray, Cohort, CohortRows, cohort_of, inner_products
from reid.retrieval.cohorts import CohortStatistics, measure_cohorts, measure_toward, unmeasured, with_other_cameras
from reid.retrieval.exact import best_positions, empty_ranking, score_rows
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_rows import first_of_groups, groups_by
from reid.retrieval.kept_cohorts import METHOD, cohorts_of, read_cohorts
from reid.retrieval.kept_site import read_site
from reid.retrieval.match_thresholds import MatchThresholds, fit_thresholds
from reid.retrieval.neighbours import lower_bound
from reid.retrieval.row_table import RowTable
from reid.retrieval.score_normalization import METHODS, USES_DEVIATION, SideTerms, usable_terms

QUERIES_AT_ONCE = 64
SCORES_AT_ONCE = 2**19  # of a block of queries with a tile of rows, 2 MB
UNIT_ROUNDOFF = 2.0**-24  # of float32


@dataclass(frozen=True, eq=False)
class NormalizedRanking:
    """A ranking by normalized scores, with the plain ones.

    Args:
        ranking: The answers; ``ranking.scores`` (Q, K) are normalized.
        similarities: (Q, K) float32, the inner products of the same answers.
    """

    ranking: Ranking
    similarities: FloatArray


@dataclass(frozen=True, eq=False)
class NormalizedGallery:
    """The rows of a gallery with their cohort statistics, ready to be searched.

    Args:
        rows: The G rows.
        statistics: Their statistics (G, C); those toward a camera are measured when a query of it comes, unless all are
            there.
        is_measured: Whether the statistics toward all cameras are there.
        fitted: The false-match rates for all pairs of cameras; None where they are fitted when a query comes.
        compared: The rows that cohorts are chosen from, where there are others beside those of the gallery.

    Example:
        >>> random = np.random.default_rng(0)
        >>> vectors = random.standard_normal((80, 8)).astype(np.float32)
        >>> vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        >>> gallery = NormalizedGallery.measure(CohortRows.of_cameras(["door", "hall"] * 40, vectors))
        >>> found = gallery.search(CohortRows.of_cameras(["door"], vectors[3:4]), k=2)
        >>> int(found.ranking.rows[0, 0]), round(float(found.similarities[0, 0]), 3)
        (3, 1.0)
    """

    rows: CohortRows
    statistics: CohortStatistics
    is_measured: bool = True
    fitted: MatchThresholds | None = None
    compared: CohortRows | None = None
    _toward: dict[int, SideTerms] = field(default_factory=dict, repr=False)
    _fitted: dict[str, MatchThresholds] = field(default_factory=dict, repr=False)

    @classmethod
    def measure(cls, rows: CohortRows, method: str = "csls") -> NormalizedGallery:
        """Measure the rows of a gallery toward all cameras, to search it many times or to keep the statistics."""
        return cls(rows, measure_cohorts(rows, rows, method))

    @classmethod
    def prepare(cls, rows: CohortRows, method: str = "csls", others: CohortRows | None = None) -> NormalizedGallery:
        """Measure nothing yet; a search measures the rows toward the cameras of its queries, which is a part of it.

        ``others`` are further crops of the cameras, for those of which the gallery has too few.
        """
        compared = with_other_cameras(rows, others)
        cohort = cohort_of(compared)
        prepared = cls(rows, unmeasured(len(rows.vectors), cohort, method), is_measured=False, compared=compared)
        prepared.__dict__["cohort"] = cohort
        return prepared

    @cached_property
    def cohort(self) -> Cohort:
        """The rows that queries are compared with."""
        return cohort_of(self.rows)

    @cached_property
    def columns(self) -> IntArray:
        """The column (G,) int64 of the statistics that holds for each row's camera; -1 where none does."""
        return self.statistics.columns(self.rows.cameras)

    @cached_property
    def _all_rows(self) -> IntArray:
        return np.arange(len(self.rows.vectors))

    def toward(self, column: int) -> SideTerms:
        """Return the statistics (G,) of the rows toward the camera of a column, which is measured if it was not yet."""
        if column not in self._toward:
            if not self.is_measured:
                measure_toward(self.statistics, self.rows, self.cohort, self.statistics.cameras[column])
            self._toward[column] = usable_terms(
                np.ascontiguousarray(self.statistics.mean[:, column]),
                np.ascontiguousarray(self.statistics.deviation[:, column]),
            )
        return self._toward[column]

    def thresholds(self, query_cameras: Sequence[str]) -> MatchThresholds:
        """Fit the false-match rates of queries of some cameras; once for each camera."""
        if self.fitted is not None:
            return self.fitted
        missing = [name for name in dict.fromkeys(query_cameras) if name not in self._fitted]
        for name in missing:
            self._fitted[name] = fit_thresholds(self.compared or self.rows, self.statistics, [name])
        tables = [self._fitted[name] for name in dict.fromkeys(query_cameras)]
        return MatchThresholds.merged(tables)

    def can_rank(self, queries: CohortRows, keep: BoolArray | None = None) -> bool:
        """Return whether the gallery has enough crops to normalize the scores of these queries and rows."""
        columns = self.columns if keep is None else self.columns[keep]
        return bool((columns >= 0).all() and (self.statistics.columns(queries.cameras) >= 0).all())

    def search(self, queries: CohortRows, k: int, keep: BoolArray | None = None) -> NormalizedRanking:
        """Find the ``k`` rows with the best normalized scores for each query.

        Args:
            queries: The Q queries.
            k: The number of answers, at least 1.
            keep: (G,) bool, which rows may answer; None allows all.

        Returns:
            The answers, exactly those of scoring every row that may answer; of equal scores, the lower row is first.

        Raises:
            DataError: ``k`` is below 1, the vectors have different lengths, or there are too few crops for a cohort.
        """
        if k < 1:
            raise DataError(f"search: expected k of at least 1, got {k}")
        if not self.can_rank(queries, keep):
            raise DataError("search: too few crops of this category to normalize scores; search without")
        allowed = self._all_rows if keep is None else np.flatnonzero(keep)
        terms, own = self.query_terms(queries)
        found = _empty(len(queries.vectors), min(k, len(allowed)))
        for start in range(0, len(queries.vectors) if len(allowed) else 0, QUERIES_AT_ONCE):
            block = np.arange(start, min(start + QUERIES_AT_ONCE, len(queries.vectors)))
            near = self._near(queries, block, allowed, found.ranking.rows.shape[1], terms, own)
            for query, rows in zip(block.tolist(), near, strict=True):
                self._choose(found, queries.vectors[query], query, rows, terms, own)
        return _checked(found)

    def _near(
        self, queries: CohortRows, block: IntArray, allowed: IntArray, k: int, terms: SideTerms, own: IntArray
    ) -> list[IntArray]:
        """Return for each query of a block (B,) the rows that may be among its ``k`` best, ascending.

        A tile of rows is normalized while it is in the cache.  The k-th best of a tile bounds the k-th best of all.
        """
        everything, size = len(allowed) == len(self.rows.vectors), SCORES_AT_ONCE // len(block)
        margins = np.array([self._margin(queries, query, terms, own) for query in block.tolist()], np.float32)
        bounds, parts = np.full(len(block), -np.inf, np.float32), []
        for start in range(0, len(allowed), size):
            rows: IntArray | slice = slice(start, start + size) if everything else allowed[start : start + size]
            scores = inner_products(queries.vectors[block], self.rows.vectors[rows])
            scores = METHODS[self.statistics.method](scores, *self._sides(terms, own, block, rows))
            bounds = np.maximum(bounds, lower_bound(scores, k))
            who, where = np.nonzero(scores >= (bounds - margins)[:, None])
            parts.append((who, allowed[start + where], scores[who, where]))
        who, found, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        reach = scores >= (bounds - margins)[who]
        return [found[reach & (who == number)] for number in range(len(block))]

    def rescore(self, queries: CohortRows, candidates: Sequence[IntArray], k: int) -> NormalizedRanking:
        """Rank candidates by normalized scores, such as those that an approximate index finds by plain ones.

        Args:
            queries: The Q queries.
            candidates: For each query its rows (T,) int64.
            k: The number of answers, at least 1.

        Returns:
            The answers; a query with fewer candidates has fewer.
        """
        terms, own = self.query_terms(queries)
        found = _empty(len(queries.vectors), k)
        for query, rows in enumerate(candidates):
            self._choose(found, queries.vectors[query], query, rows, terms, own)
        return _checked(found)

    def query_terms(self, queries: CohortRows) -> tuple[SideTerms, IntArray]:
        """Return the statistics (Q, C) of the queries toward each camera, and the column (Q,) of their own."""
        if queries is self.rows and self.is_measured:
            statistics = self.statistics
        else:
            statistics = measure_cohorts(queries, self.cohort, self.statistics.method)
        return usable_terms(statistics.mean, statistics.deviation), self.statistics.columns(queries.cameras)

    def _sides(
        self, terms: SideTerms, own: IntArray, queries: IntArray, rows: IntArray | slice
    ) -> tuple[SideTerms, SideTerms]:
        """Return the statistics of the pairs of queries (B,) and rows (A,): of the queries (B, A), of the rows."""
        columns, (cameras, of_query) = self.columns[rows], np.unique(own[queries], return_inverse=True)
        sides = [self.toward(int(column)) for column in cameras]
        found = []
        for name in ("mean", "deviation") if self.statistics.method in USES_DEVIATION else ("mean",):
            toward = np.stack([getattr(side, name)[rows] for side in sides])
            toward = toward if len(sides) == 1 else toward[of_query.reshape(-1)]
            found.append((np.take(getattr(terms, name)[queries], columns, axis=1), toward))
        return SideTerms(found[0][0], found[-1][0]), SideTerms(found[0][1], found[-1][1])

    def _margin(self, queries: CohortRows, query: int, terms: SideTerms, own: IntArray) -> np.float32:
        """Return how far rounding may move a normalized score, twice (Higham 2002: D u |x| |y|)."""
        rounding = 4 * (queries.vectors.shape[1] + 8) * UNIT_ROUNDOFF * max(1.0, np.linalg.norm(queries.vectors[query]))
        if self.statistics.method not in USES_DEVIATION:
            return np.float32(2 * rounding)
        smallest = min(float(terms.deviation[query].min()), float(self.toward(int(own[query])).deviation.min()))
        return np.float32(2 * rounding * max(1.0, 1 / smallest**2))

    def _choose(
        self, found: NormalizedRanking, vector: FloatArray, query: int, rows: IntArray, terms: SideTerms, own: IntArray
    ) -> None:
        """Write the best of some rows as the answers to a query; scores are those of :mod:`reid.retrieval.exact`."""
        products = score_rows(vector, self.rows.vectors[rows])
        sides = self._sides(terms, own, np.array([query]), rows)
        scores = METHODS[self.statistics.method](products[None].copy(), *sides)[0]
        best = best_positions(rows, scores, found.ranking.rows.shape[1])
        found.ranking.rows[query, : len(best)] = rows[best]
        found.ranking.scores[query, : len(best)] = scores[best]
        found.similarities[query, : len(best)] = products[best]
        found.ranking.counts[query] = len(best)


def _empty(queries: int, k: int) -> NormalizedRanking:
    return NormalizedRanking(empty_ranking(queries, k), np.full((queries, k), -np.inf, np.float32))


def _checked(found: NormalizedRanking) -> NormalizedRanking:
    ranking = found.ranking
    return NormalizedRanking(Ranking(ranking.rows, ranking.scores, ranking.counts), found.similarities)


_prepared: WeakKeyDictionary[Gallery, tuple[object, NormalizedGallery]] = WeakKeyDictionary()


def normalized_gallery(gallery: Gallery, method: str = "csls") -> NormalizedGallery:
    """Return a gallery ready to be searched by normalized scores, once for each state of the gallery.

    It uses the statistics and thresholds that the folder of the gallery keeps (:mod:`reid.retrieval.kept_cohorts`).
    Where it keeps none, a search measures what it needs.

    Raises:
        GalleryError: The file of the statistics is damaged.
    """
    known, table = _prepared.get(gallery), gallery.table
    if known is None or known[0] is not table or known[1].statistics.method != method:
        known = table, _prepare(gallery, table, method)
        _prepared[gallery] = known
    return known[1]


def _prepare(gallery: Gallery, table: RowTable, method: str) -> NormalizedGallery:
    kept = None if (folder := gallery.folder) is None else read_cohorts(folder)
    rows = CohortRows.of_table(table, gallery.rows.vectors(), None if kept is None else kept.hashes)
    others = None if folder is None else read_site(folder)
    if others is not None and len(with_other_cameras(rows, others).cameras) > len(rows.cameras):
        return NormalizedGallery.prepare(rows, method, others)
    current = None if kept is None or method != METHOD else cohorts_of(kept, table, rows, gallery.rows)
    if current is None:
        return NormalizedGallery.prepare(rows, method)
    return NormalizedGallery(rows, current.statistics, fitted=current.thresholds)


def search_normalized(
    gallery: Gallery,
    vectors: FloatArray,
    queries: Sequence[Sample],
    k: int,
    *,
    fingerprint: str,
    keep: BoolArray | None = None,
    method: str = "csls",
    one_per: str = "",
) -> NormalizedRanking | None:
    """Find the rows of a gallery with the best normalized scores, as :meth:`Gallery.search` does by plain ones.

    Args:
        gallery: The gallery.
        vectors: (Q, D) float32 of unit length.
        queries: The samples of the queries, which name their cameras and categories.
        k: The number of answers, at least 1.
        fingerprint: The fingerprint of the network that made ``vectors``.
        keep: (G,) bool, which rows may answer; None allows all.
        method: "csls" or "snorm".
        one_per: A column such as "identity"; only the best row of each of its labels answers.

    Returns:
        The answers; None where the gallery has too few crops to normalize scores, or Milvus keeps its vectors.

    Raises:
        GalleryError: Another network made the gallery, or the gallery is empty.
        DataError: The vectors, ``k`` or ``keep`` have a wrong type or shape.
    """
    if len(gallery) and not len(gallery.rows.table):
        return None  # a server keeps the vectors
    removed = gallery.check_search(vectors, k, fingerprint=fingerprint, keep=keep)
    prepared = normalized_gallery(gallery, method)
    rows = CohortRows.of_samples(queries, vectors)
    if not prepared.can_rank(rows, keep):
        return None
    allowed = keep if not removed.any() else ~removed if keep is None else keep & ~removed
    if not one_per:
        return prepared.search(rows, k, allowed)
    everything = np.ones(len(prepared.columns), np.bool_) if allowed is None else allowed
    return _best_of_groups(prepared, rows, k, everything, groups_by(gallery.table, one_per))


def _best_of_groups(
    prepared: NormalizedGallery, rows: CohortRows, k: int, allowed: BoolArray, groups: IntArray
) -> NormalizedRanking:
    """Find the best row of each of the ``k`` nearest groups; ``groups`` (G,) int64 is the group of each row."""
    size, wanted = int(np.count_nonzero(allowed)), min(k, len(np.unique(groups[allowed])))
    depth = min(4 * k, size)
    while True:
        every = prepared.search(rows, depth, allowed)
        counted = enumerate(every.ranking.counts)
        best = [first_of_groups(every.ranking.rows[i, :count], groups, wanted) for i, count in counted]
        if depth >= size or all(len(positions) >= wanted for positions in best):
            break
        depth = min(4 * depth, size)
    found = _empty(len(rows.vectors), wanted)
    for i, positions in enumerate(best):
        found.ranking.rows[i, : len(positions)] = every.ranking.rows[i, positions]
        found.ranking.scores[i, : len(positions)] = every.ranking.scores[i, positions]
        found.similarities[i, : len(positions)] = every.similarities[i, positions]
        found.ranking.counts[i] = len(positions)
    return _checked(found)
