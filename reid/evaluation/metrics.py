"""mAP, mINP, CMC, R-precision and MAP@R of queries against a gallery, by counting instead of sorting.

Only right rows have to be placed: the rank of the i-th best right row of a query is i plus the number
of wrong gallery rows that score at least as much.  So each block of queries costs one matrix product
and, for every right row, one pass of comparisons.  No list of Q x G is ever sorted or kept.

Nothing here knows files, samples or networks; unknown labels are resolved in ``rules``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, unknown_name
from reid.evaluation.answers import Answers, answers_to
from reid.evaluation.ranks import TIES, Float64Array, Places, count_wrong, first_of_identities, places_of
from reid.evaluation.score_blocks import ScoreBlocks, Vectors, block_size, check_vectors, inner_products
from reid.records import IntArray

MAX_RANK = 50
LONGEST_CMC = 1_000_000

VARIANTS = {
    "trapezoid": "AP by trapezoids: the mean of the precision at each right row and just before it",
    "all_queries": "means over all queries, those without a right answer count 0",
}
CMC_OVER = {
    "rows": "every gallery row has a place",
    "identities": "every gallery identity has one place, that of its best row",
}


class NoMatchError(DataError):
    """No query has a right answer in the gallery, so there is nothing to average."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """What a retrieval is worth; every value is a fraction in 0..1.

    ``cmc`` (K,) float64, ``cmc[k - 1]`` is rank-k: the share of queries with a right answer among
    the first k.  Row i of the arrays (Q,) belongs to query i: ``average_precision``,
    ``inverse_negative_penalty`` and ``rank1`` (is the first answer right: 0 or 1, between them only
    where ties are averaged) are float64 and NaN, and ``first_match`` int64 (place of the first right
    answer, 1 is best, with ties against it) is 0, for a query without any right answer in the
    gallery.  Such queries are counted and enter no mean, unless the variant "all_queries" is among
    ``variants``.  ``queries`` and ``gallery`` count all rows given.  ``ties``, ``variants`` and
    ``cmc_over`` say how it was computed.
    """

    mAP: float  # noqa: N815 - the field's own spelling
    mINP: float  # noqa: N815
    cmc: Float64Array
    queries: int
    queries_without_match: int
    gallery: int
    average_precision: Float64Array
    inverse_negative_penalty: Float64Array
    first_match: IntArray
    rank1: Float64Array
    r_precision: float
    map_at_r: float
    ties: str
    variants: tuple[str, ...]
    cmc_over: str

    def rank(self, k: int) -> float:
        """CMC at ``k`` (1 is the first place); what metric learning calls recall@k (Song et al. 2016)."""
        return float(self.cmc[k - 1])

    def averaged(self, values: Float64Array) -> Float64Array:
        """``values`` (Q,) as they enter a mean: NaN stays out of it, or counts 0 in the variant "all_queries"."""
        return np.nan_to_num(values) if "all_queries" in self.variants else values


def market_metrics(
    query_vectors: npt.ArrayLike,
    gallery_vectors: npt.ArrayLike,
    *,
    query_identities: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    query_cameras: npt.ArrayLike,
    gallery_cameras: npt.ArrayLike,
    query_locations: npt.ArrayLike | None = None,
    gallery_locations: npt.ArrayLike | None = None,
    ties: str = "worst",
    variants: Collection[str] = (),
    cmc_over: str = "rows",
    max_rank: int = MAX_RANK,
    block: int | None = None,
    memory: int | None = None,
) -> Metrics:
    """Metrics of ``query_vectors`` (Q, D) against ``gallery_vectors`` (G, D), floats.

    Scores are inner products, so rows should have unit length; lengths are not changed here.  For
    labels, rules and variants see :func:`score_metrics`.  ``block`` is the number of queries scored
    at a time; by default as many as have scores of ``memory`` bytes (64 MiB, or 64 queries).
    """
    queries, gallery = check_vectors(query_vectors, gallery_vectors)
    size = block_size(len(gallery), gallery.itemsize, memory) if block is None else block
    options = _Options(ties, tuple(variants), cmc_over, max_rank, size)
    answers = answers_to(
        len(queries), len(gallery),
        query_identities=query_identities, gallery_identities=gallery_identities,
        query_cameras=query_cameras, gallery_cameras=gallery_cameras,
        query_locations=query_locations, gallery_locations=gallery_locations,
    )  # fmt: skip
    return _measure(inner_products(queries, gallery, size), answers, options)


def score_metrics(
    scores: ScoreBlocks,
    *,
    query_identities: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    query_cameras: npt.ArrayLike,
    gallery_cameras: npt.ArrayLike,
    query_locations: npt.ArrayLike | None = None,
    gallery_locations: npt.ArrayLike | None = None,
    ties: str = "worst",
    variants: Collection[str] = (),
    cmc_over: str = "rows",
    max_rank: int = MAX_RANK,
    block: int = 64,
) -> Metrics:
    """Metrics of any scores, e.g. re-ranked ones: ``scores(start, stop)`` gives those of some queries.

    Labels are arrays (Q,) and (G,) of strings or integers.  A gallery row with the query's identity
    and camera is left out, and with ``places`` every row of the query's place, whoever it shows.
    Average precision is the mean, over all R right rows, of i / rank of the i-th (equal to
    scikit-learn's where no scores tie); INP is R / rank of the last one (Ye et al. 2021);
    R-precision the share of right rows among the first R, and MAP@R the mean over these R places of
    the precision where a right row stands, else 0 (Musgrave et al. 2020).

    Ties are judged at their worst: of rows with equal scores the wrong ones stand first, so an
    embedding that maps everything to one point scores as low as can be; or ``ties`` = "mean": every
    value is its mean over all orders of what ties (``TIES``).  ``variants`` (keys of ``VARIANTS``) compute
    what other evaluators do, ``cmc_over`` (a key of ``CMC_OVER``) says what has a place in the CMC,
    ``max_rank`` is the length of ``cmc``.
    """
    options = _Options(ties, tuple(variants), cmc_over, max_rank, block)
    answers = answers_to(
        np.size(query_identities), np.size(gallery_identities),
        query_identities=query_identities, gallery_identities=gallery_identities,
        query_cameras=query_cameras, gallery_cameras=gallery_cameras,
        query_locations=query_locations, gallery_locations=gallery_locations,
    )  # fmt: skip
    return _measure(_checked(scores, answers.gallery), answers, options)


@dataclass(frozen=True)
class _Options:
    ties: str
    variants: tuple[str, ...]
    cmc_over: str
    max_rank: int
    block: int

    def __post_init__(self) -> None:
        if not 1 <= self.max_rank <= LONGEST_CMC or self.block < 1:
            raise DataError(
                f"metrics: expected max_rank of 1 to {LONGEST_CMC} and block of 1 or more,"
                f" got {self.max_rank} and {self.block}"
            )
        chosen = [("tie rule", self.ties, TIES), ("CMC over", self.cmc_over, CMC_OVER)]
        for kind, name, known in [*chosen, *(("variant", variant, VARIANTS) for variant in self.variants)]:
            if name not in known:
                raise DataError(unknown_name(kind, name, known))


def _checked(scores: ScoreBlocks, gallery: int) -> ScoreBlocks:
    def checked(start: int, stop: int) -> Vectors:
        part = scores(start, stop)
        if part.shape != (stop - start, gallery) or part.dtype.kind != "f":
            raise DataError(f"scores: expected floats {(stop - start, gallery)}, got {part.dtype} {part.shape}")
        if not part.max(initial=-np.inf) < np.inf:  # also false for NaN
            raise DataError(f"scores: NaN or infinity among those of queries {start} to {stop - 1}")
        return part

    return checked


@dataclass
class _Sums:
    """Per query (Q,) what has been measured so far, 0 without a match; ``first`` (K + 1,) counts first matches."""

    precision: Float64Array
    penalty: Float64Array
    rank1: Float64Array
    r_precision: Float64Array
    map_at_r: Float64Array
    matches: IntArray
    first_match: IntArray
    first: Float64Array

    @classmethod
    def none_yet(cls, queries: int, max_rank: int) -> _Sums:
        means = [np.zeros(queries) for _ in range(5)]
        counts = [np.zeros(queries, np.int64) for _ in range(2)]
        return cls(means[0], means[1], means[2], means[3], means[4], counts[0], counts[1], np.zeros(max_rank + 1))

    def add_first(self, places: Places, start: int) -> None:
        beyond = len(self.first)
        self.first += np.bincount(np.minimum(places.rank, beyond), places.first, beyond + 1)[1:]
        np.add.at(self.rank1, start + places.query, places.first * (places.rank == 1))

    def add(self, places: Places, start: int, trapezoid: bool) -> None:
        query = start + places.query
        matches = self.matches[query]
        precision = (places.before + 1) / places.rank
        early = places.chance * (places.rank <= matches)
        np.add.at(self.r_precision, query, early)
        np.add.at(self.map_at_r, query, early * precision)
        np.add.at(self.penalty, query, places.last * matches / places.rank)
        if trapezoid:
            earlier = np.where(places.rank > 1, places.before / np.maximum(places.rank - 1, 1), 1.0)
            precision = (precision + earlier) / 2
        np.add.at(self.precision, query, places.chance * precision)

    def divide(self) -> None:
        """Turn the sums over the right rows of a query into means."""
        for column in (self.precision, self.r_precision, self.map_at_r):
            np.divide(column, self.matches, out=column, where=self.matches > 0)


def _measure(scores: ScoreBlocks, answers: Answers, options: _Options) -> Metrics:
    total = answers.queries
    sums = _Sums.none_yet(total, options.max_rank)
    for start in range(0, total, options.block):
        stop = min(start + options.block, total)
        part = scores(start, stop)
        pairs = answers.apply(part, start)
        if options.cmc_over == "identities":
            places, worst = _first_identities(part, answers, start, options.ties)
            sums.add_first(places, start)
        counts = count_wrong(part, *pairs, options.ties)
        if options.cmc_over == "rows":
            worst = counts.first_at_worst()
        sums.first_match[start:stop], sums.matches[start:stop] = worst, counts.matches
        for places in places_of(counts):
            sums.add(places, start, "trapezoid" in options.variants)
            if options.cmc_over == "rows":
                sums.add_first(places, start)
    sums.divide()
    return _summary(sums, answers.gallery, options)


def _first_identities(scores: Vectors, answers: Answers, start: int, ties: str) -> tuple[Places, IntArray]:
    order = answers.judgement.order
    ordered = answers.gallery_identities[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    first, last = (column[start : start + len(scores)] for column in (answers.judgement.first, answers.judgement.last))
    own = np.where(last > first, np.searchsorted(starts, first), -1)
    return first_of_identities(scores[:, order], starts, own, ties)


def _summary(sums: _Sums, gallery: int, options: _Options) -> Metrics:
    matched = sums.matches > 0
    if not matched.any():
        raise NoMatchError(
            f"none of the {len(matched)} queries has a right answer in the gallery: the same identity"
            " seen by another camera; check the identities and cameras of both"
        )
    counted = np.ones_like(matched) if "all_queries" in options.variants else matched
    cmc = np.minimum(np.cumsum(sums.first[:-1]) / np.count_nonzero(counted), 1.0)
    return Metrics(
        mAP=float(sums.precision[counted].mean()),
        mINP=float(sums.penalty[counted].mean()),
        cmc=cmc,
        queries=len(matched),
        queries_without_match=int(np.count_nonzero(~matched)),
        gallery=gallery,
        average_precision=np.where(matched, sums.precision, np.nan),
        inverse_negative_penalty=np.where(matched, sums.penalty, np.nan),
        first_match=sums.first_match,
        rank1=np.where(matched, sums.rank1, np.nan),
        r_precision=float(sums.r_precision[counted].mean()),
        map_at_r=float(sums.map_at_r[counted].mean()),
        ties=options.ties,
        variants=options.variants,
        cmc_over=options.cmc_over,
    )
