"""Rank the rows of a gallery by scores that are normalized per pair of cameras, exactly and under any filter.

By CSLS, short codes choose the rows whose vectors are read (:mod:`reid.retrieval.coded_gallery`).  Without them, the
scores of a block of queries with all gallery rows are normalized in place, in a few passes over an array that the
matrix product has just written.  Either way, the scores of the rows that may be among the best are computed again
exactly.  For an index that is approximate, :mod:`reid.retrieval.extended_vectors` writes the scores of CSLS as inner
products, and :meth:`NormalizedGallery.rescore` normalizes the candidates that an index has found by plain scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.coded_gallery import CodedGallery, CodesOfSearches, SearchCodes, codes_fit
from reid.retrieval.cohort_rows import BoolArray, Cohort, CohortRows, cohort_of, inner_products
from reid.retrieval.cohorts import CohortStatistics, measure_cohorts, measure_toward, unmeasured, with_other_cameras
from reid.retrieval.exact import empty_ranking, score_rows
from reid.retrieval.kept_cohorts import METHOD
from reid.retrieval.match_thresholds import MatchThresholds, fit_thresholds
from reid.retrieval.neighbours import lower_bound
from reid.retrieval.query_cohorts import NearCrops, encode_cohort, measure_queries
from reid.retrieval.score_normalization import METHODS, USES_DEVIATION, SideTerms, usable_terms
from reid.retrieval.stores.code_search import codes_help
from reid.retrieval.stores.flat_store import FEWEST_CODED, ROWS_PER_RANK

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

    @classmethod
    def empty(cls, queries: int, ranks: int) -> NormalizedRanking:
        """Return a ranking (Q, K) without answers, to be filled."""
        return cls(empty_ranking(queries, ranks), np.full((queries, ranks), -np.inf, np.float32))

    def checked(self) -> NormalizedRanking:
        """Return the ranking after its answers were written and checked."""
        ranking = self.ranking
        return NormalizedRanking(Ranking(ranking.rows, ranking.scores, ranking.counts), self.similarities)


@dataclass(frozen=True, eq=False)
class AskedQueries:
    """Q queries as a search needs them.

    Args:
        vectors: (Q, D) float32.
        terms: Their statistics (Q, C) toward each camera.
        own: (Q,) int64, the column of the camera of each.
        near: Rows of the gallery that are near to them, which measuring has found.
    """

    vectors: FloatArray
    terms: SideTerms
    own: IntArray
    near: Sequence[NearCrops] = ()


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
    _codes: CodesOfSearches = field(default_factory=CodesOfSearches, repr=False)
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
        k, everyone = min(k, len(allowed)), len(queries.vectors)
        found = NormalizedRanking.empty(everyone, k)
        if not k or not everyone:
            return found.checked()
        codes = self._codes_for(everyone, k, len(allowed))
        asked = self.query_terms(queries)
        pairs = (
            None
            if codes is None
            else codes.rows.near(queries.vectors, asked.terms.mean, asked.own, k, keep, asked.near)
        )
        if pairs is not None:
            self._choose(found, asked, *pairs)
        for start in range(0, everyone if pairs is None else 0, QUERIES_AT_ONCE):
            block = np.arange(start, min(start + QUERIES_AT_ONCE, everyone))
            self._choose(found, asked, *self._near(asked, block, allowed, k))
        return found.checked()

    def _codes_for(self, queries: int, k: int, allowed: int) -> SearchCodes | None:
        """Return the codes where so many queries, and rows that may answer, are searched faster with them."""
        cameras = len(self.statistics.cameras)
        if self.statistics.method != METHOD or not codes_fit(self.rows.vectors.shape[1], cameras):
            return None
        if allowed < max(FEWEST_CODED, ROWS_PER_RANK * k) or not codes_help(queries):
            return None
        return self._codes.get(
            lambda: SearchCodes(
                CodedGallery.of(self.rows.vectors, self.columns, cameras, lambda column: self.toward(column).mean),
                encode_cohort(self.cohort),
            )
        )

    def _near(self, asked: AskedQueries, block: IntArray, allowed: IntArray, k: int) -> tuple[IntArray, IntArray]:
        """Return queries (E,) of a block (B,), which ascend, and rows (E,), those that may be among the ``k`` best.

        A tile of rows is normalized while it is in the cache.  The k-th best of a tile bounds the k-th best of all.
        """
        everything, size = len(allowed) == len(self.rows.vectors), SCORES_AT_ONCE // len(block)
        margins = np.array([self._margin(asked, query) for query in block.tolist()], np.float32)
        bounds, parts = np.full(len(block), -np.inf, np.float32), []
        for start in range(0, len(allowed), size):
            rows: IntArray | slice = slice(start, start + size) if everything else allowed[start : start + size]
            scores = inner_products(asked.vectors[block], self.rows.vectors[rows])
            scores = METHODS[self.statistics.method](scores, *self._sides(asked, block, rows))
            bounds = np.maximum(bounds, lower_bound(scores, k))
            who, where = np.nonzero(scores >= (bounds - margins)[:, None])
            parts.append((who, allowed[start + where], scores[who, where]))
        who, found, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        reach = np.flatnonzero(scores >= (bounds - margins)[who])
        reach = reach[np.argsort(who[reach], kind="stable")]
        return block[who[reach]], found[reach]

    def rescore(self, queries: CohortRows, candidates: Sequence[IntArray], k: int) -> NormalizedRanking:
        """Rank candidates by normalized scores, such as those that an approximate index finds by plain ones.

        Args:
            queries: The Q queries.
            candidates: For each query its rows (T,) int64.
            k: The number of answers, at least 1.

        Returns:
            The answers; a query with fewer candidates has fewer.
        """
        found = NormalizedRanking.empty(len(queries.vectors), k)
        counts = [len(rows) for rows in candidates]
        rows = np.concatenate([np.empty(0, np.int64), *candidates])
        self._choose(found, self.query_terms(queries), np.repeat(np.arange(len(counts)), counts), rows)
        return found.checked()

    def query_terms(self, queries: CohortRows) -> AskedQueries:
        """Measure queries toward each camera.

        The numbers of a query do not depend on the other queries, nor on whether there are codes.
        """
        near: list[NearCrops] = []
        if queries is self.rows and self.is_measured:
            statistics = self.statistics
        elif self.statistics.method == METHOD:
            codes, has_others = self._codes.encoded, self.compared is not None and self.compared is not self.rows
            coded = () if codes is None else codes.cohort
            statistics = measure_queries(queries, self.cohort, coded, None if has_others else near)
        else:
            statistics = measure_cohorts(queries, self.cohort, self.statistics.method)
        terms = usable_terms(statistics.mean, statistics.deviation)
        return AskedQueries(queries.vectors, terms, self.statistics.columns(queries.cameras), near)

    def _sides(self, asked: AskedQueries, queries: IntArray, rows: IntArray | slice) -> tuple[SideTerms, SideTerms]:
        """Return the statistics of the pairs of queries (B,) and rows (A,): of the queries (B, A), of the rows."""
        columns, (cameras, of_query) = self.columns[rows], np.unique(asked.own[queries], return_inverse=True)
        sides = [self.toward(int(column)) for column in cameras]
        found = []
        for name in ("mean", "deviation") if self.statistics.method in USES_DEVIATION else ("mean",):
            toward = np.stack([getattr(side, name)[rows] for side in sides])
            toward = toward if len(sides) == 1 else toward[of_query.reshape(-1)]
            found.append((np.take(getattr(asked.terms, name)[queries], columns, axis=1), toward))
        return SideTerms(found[0][0], found[-1][0]), SideTerms(found[0][1], found[-1][1])

    def _margin(self, asked: AskedQueries, query: int) -> np.float32:
        """Return how far rounding may move a normalized score, twice (Higham 2002: D u |x| |y|)."""
        rounding = 4 * (asked.vectors.shape[1] + 8) * UNIT_ROUNDOFF * max(1.0, np.linalg.norm(asked.vectors[query]))
        if self.statistics.method not in USES_DEVIATION:
            return np.float32(2 * rounding)
        toward = self.toward(int(asked.own[query]))
        smallest = min(float(asked.terms.deviation[query].min()), float(toward.deviation.min()))
        return np.float32(2 * rounding * max(1.0, 1 / smallest**2))

    def _choose(self, found: NormalizedRanking, asked: AskedQueries, query: IntArray, row: IntArray) -> None:
        """Write the best of pairs (E,), whose queries ascend; scores are those of :mod:`reid.retrieval.exact`."""
        products = np.empty(len(row), np.float32)
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(query)], strict=False):
            products[start:stop] = score_rows(asked.vectors[query[start]], self.rows.vectors[row[start:stop]])
        scores = METHODS[self.statistics.method](products.copy(), *self._sides_of_pairs(asked, query, row))
        order = np.lexsort((row, -scores, query))
        rank = np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))
        is_best = rank < found.ranking.rows.shape[1]
        order, rank = order[is_best], rank[is_best]
        places = query[order], rank
        found.ranking.rows[places], found.ranking.scores[places] = row[order], scores[order]
        found.similarities[places] = products[order]
        found.ranking.counts[:] += np.bincount(query[order], minlength=len(found.ranking.counts))

    def _sides_of_pairs(self, asked: AskedQueries, query: IntArray, row: IntArray) -> tuple[SideTerms, SideTerms]:
        """Return the statistics (E,) of the queries and of the rows of pairs."""
        own, columns = asked.own[query], self.columns[row]
        names = ("mean", "deviation") if self.statistics.method in USES_DEVIATION else ("mean",)
        sides = []
        for name in names:
            toward = np.empty(len(row), np.float32)
            for camera in np.unique(own).tolist():
                toward[own == camera] = getattr(self.toward(camera), name)[row[own == camera]]
            sides.append((getattr(asked.terms, name)[query, columns], toward))
        return SideTerms(sides[0][0], sides[-1][0]), SideTerms(sides[0][1], sides[-1][1])
