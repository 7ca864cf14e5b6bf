"""The metrics of queries against a gallery: mAP, mINP, CMC, R-precision and MAP@R.

Each block of queries costs one matrix product and, for every right row, one pass of comparisons.  No list of Q x G is
ever sorted or kept.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, unknown_name
from reid.evaluation.labels import Labels, check_labels
from reid.evaluation.ranks import TIES, BlockRanks, Float64Array, RightRanks, rank_right_rows
from reid.evaluation.score_blocks import ScoreBlocks, Vectors, check_vectors, inner_products_in_blocks, vector_scores
from reid.records import IntArray

MAX_RANK = 50
LONGEST_CMC = 1_000_000

VARIANTS = {
    "trapezoid": "AP by trapezoids: the mean of the precision at each right row and just before it",
    "all_queries": "means over all queries; those without a right answer count 0",
}
CMC_OVER = {
    "rows": "every gallery row has a rank",
    "identities": "every gallery identity has one rank, that of its best row",
}


class NoMatchError(DataError):
    """No query has a right answer in the gallery, so there is nothing to average."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """The metrics of queries against a gallery; every value is a fraction in 0..1.

    Queries without a right answer in the gallery are counted but enter no mean, unless ``variants`` has "all_queries".

    Attributes:
        mAP: Mean average precision.
        mINP: Mean inverse negative penalty.
        cmc: The share of queries with a right answer among the first k, (K,) float64; ``cmc[k - 1]`` is rank-k.
        queries: The number of queries, unmatched ones included.
        queries_without_match: The number of queries without a right answer.
        gallery: The number of gallery rows.
        average_precision: Of each query, (Q,) float64; NaN for a query without a right answer.
        inverse_negative_penalty: Of each query, (Q,) float64; NaN for a query without a right answer.
        first_match: The rank of the first right answer of each query, with ties against it, (Q,) int64; 1 is the
            best, 0 stands for a query without a right answer.
        rank1: Whether the first answer of each query is right, (Q,) float64: 0 or 1, and between them only where
            ties are averaged; NaN for a query without a right answer.
        r_precision: The mean share of right rows among the first R, where R is the number of right rows.
        map_at_r: The mean over the first R ranks of the precision where a right row stands, else 0.
        ties: How rows with equal scores were ordered, a key of ``TIES``.
        variants: What was computed as other evaluators do, keys of ``VARIANTS``.
        cmc_over: What has a rank in the CMC, a key of ``CMC_OVER``, or "single-shot".
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
        """Return the CMC at ``k``; 1 is the first rank.  Metric learning calls it recall@k (Song et al. 2016)."""
        return float(self.cmc[k - 1])

    def averaged(self, values: Float64Array) -> Float64Array:
        """Return ``values`` (Q,) as they enter a mean: NaN stays out, or counts 0 in the variant "all_queries"."""
        return np.nan_to_num(values) if "all_queries" in self.variants else values


@dataclass(frozen=True)
class MetricOptions:
    """How metrics are computed: keys of ``TIES``, ``VARIANTS`` and ``CMC_OVER``, and the length of the CMC.

    Raises DataError for an unknown name, and for a length that is not 1 to ``LONGEST_CMC``.
    """

    ties: str = "worst"
    variants: tuple[str, ...] = ()
    cmc_over: str = "rows"
    max_rank: int = MAX_RANK

    def __post_init__(self) -> None:
        if not 1 <= self.max_rank <= LONGEST_CMC:
            raise DataError(f"metrics: expected max_rank of 1 to {LONGEST_CMC}, got {self.max_rank}")
        chosen = [("tie rule", self.ties, TIES), ("CMC over", self.cmc_over, CMC_OVER)]
        for option, name, known in [*chosen, *(("variant", variant, VARIANTS) for variant in self.variants)]:
            if name not in known:
                raise DataError(unknown_name(option, name, known))


DEFAULT_OPTIONS = MetricOptions()


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
    query_places: npt.ArrayLike | None = None,
    gallery_places: npt.ArrayLike | None = None,
) -> Metrics:
    """Compute the metrics of query vectors against gallery vectors by the Market-1501 rule.

    Scores are inner products, so rows should have unit length; lengths are not changed here.  A gallery row that shows
    the query's identity in the query's own camera is left out.

    Args:
        query_vectors: Floats (Q, D).
        gallery_vectors: Floats (G, D).
        query_identities: Labels (Q,), strings or integers; equal labels mean the same identity.
        gallery_identities: Labels (G,).
        query_cameras: Labels (Q,).
        gallery_cameras: Labels (G,).
        query_locations: Labels (Q,).  With locations, every gallery row of the query's location is left out, whoever
            it shows (SYSU-MM01).
        gallery_locations: Labels (G,).
        ties: Of rows with equal scores the wrong ones stand first ("worst"), so an embedding that maps everything to
            one point scores as low as can be; or every value is its mean over all orders of equal scores ("mean").
        variants: What to compute as other evaluators do, keys of ``VARIANTS``.
        cmc_over: Whether "rows" or "identities" have a rank in the CMC.
        max_rank: The length of the CMC.
        block: How many queries to score at a time.
        memory: Bytes of scores to hold at a time; 64 MiB by default, or what 64 queries need if that is more.
        query_places: The name of ``query_locations`` in version 0.1.0.
        gallery_places: The name of ``gallery_locations`` in version 0.1.0.

    Returns:
        The metrics.

    Raises:
        DataError: Vectors or labels of a wrong shape or type, or an unknown option.
        NoMatchError: No query has a right answer in the gallery.

    Example:
        >>> metrics = market_metrics(
        ...     np.float32([[1, 0]]), np.float32([[0.8, 0.6], [1, 0], [0.6, 0.8]]),
        ...     query_identities=["anna"], gallery_identities=["ben", "anna", "anna"],
        ...     query_cameras=["door"], gallery_cameras=["hall", "door", "hall"])
        >>> metrics.rank(1), metrics.rank(2), metrics.mAP
        (0.0, 1.0, 0.5)
    """
    queries, gallery = check_vectors(query_vectors, gallery_vectors)
    labels = Labels(
        check_labels("query_identities", query_identities, len(queries)),
        check_labels("gallery_identities", gallery_identities, len(gallery)),
        check_labels("query_cameras", query_cameras, len(queries)),
        check_labels("gallery_cameras", gallery_cameras, len(gallery)),
        _locations("query", query_locations, query_places, len(queries)),
        _locations("gallery", gallery_locations, gallery_places, len(gallery)),
    )
    options = MetricOptions(ties, tuple(variants), cmc_over, max_rank)
    scores, size = inner_products_in_blocks(queries, gallery, memory, block)
    return _measure(scores, labels, options, size)


def _locations(
    side: str, locations: npt.ArrayLike | None, places: npt.ArrayLike | None, count: int
) -> npt.NDArray[np.generic] | None:
    """Return the checked locations, given under their name or under that of version 0.1.0."""
    if locations is not None and places is not None:
        raise DataError(f"{side}_places is the old name of {side}_locations, which is given too; keep one")
    given = places if locations is None else locations
    return None if given is None else check_labels(f"{side}_locations", given, count)


def vector_metrics(
    query_vectors: npt.ArrayLike,
    gallery_vectors: npt.ArrayLike,
    labels: Labels,
    options: MetricOptions = DEFAULT_OPTIONS,
    *,
    memory: int | None = None,
) -> Metrics:
    """Compute what :func:`market_metrics` computes, from labels in one record.

    ``query_vectors`` (Q, D) and ``gallery_vectors`` (G, D) are floats; ``memory`` bounds the bytes of scores held.
    """
    scores, size = vector_scores(query_vectors, gallery_vectors, labels, memory)
    return _measure(scores, labels, options, size)


def score_metrics(
    scores: ScoreBlocks, labels: Labels, options: MetricOptions = DEFAULT_OPTIONS, *, block: int = 64
) -> Metrics:
    """Compute the metrics of any scores, such as re-ranked ones.

    Average precision is the mean, over all R right rows, of i / rank of the i-th, which equals that of scikit-learn
    where no scores tie.  The inverse negative penalty is R / rank of the last right row (Ye et al. 2021).
    R-precision and MAP@R follow Musgrave et al. (2020).

    Args:
        scores: A function; ``scores(start, stop)`` gives the scores of these queries, floats (stop - start, G), larger
            is nearer.  The array is overwritten.
        labels: The labels of the Q queries and G gallery rows.
        options: Tie rule, variants, what the CMC counts, and its length.
        block: How many queries to score at a time.

    Returns:
        The metrics.

    Raises:
        DataError: Scores of a wrong shape, or NaN or infinity among them.
        NoMatchError: No query has a right answer in the gallery.

    Example:
        >>> table = np.array([[0.9, 0.8, 0.7]])
        >>> labels = Labels(["anna"], ["ben", "anna", "ben"], ["door"], ["hall", "hall", "hall"])
        >>> score_metrics(lambda start, stop: table[start:stop].copy(), labels).mAP
        0.5
    """
    return _measure(_check_scores(scores, labels.gallery), labels, options, block)


def _check_scores(scores: ScoreBlocks, gallery: int) -> ScoreBlocks:
    def checked(start: int, stop: int) -> Vectors:
        part = scores(start, stop)
        if part.shape != (stop - start, gallery) or part.dtype.kind != "f":
            raise DataError(f"scores: expected floats {(stop - start, gallery)}, got {part.dtype} {part.shape}")
        if not part.max(initial=-np.inf) < np.inf:  # also false for NaN
            raise DataError(f"scores: NaN or infinity among those of queries {start} to {stop - 1}")
        return part

    return checked


def _measure(scores: ScoreBlocks, labels: Labels, options: MetricOptions, size: int) -> Metrics:
    if size < 1:
        raise DataError(f"metrics: expected block of 1 or more, got {size}")
    queries, gallery = len(labels.query_identities), len(labels.gallery_identities)
    sums = _Sums.zero(queries, options.max_rank)
    for start in range(0, queries, size):
        block = rank_right_rows(scores, labels, start, size, ties=options.ties, cmc_over=options.cmc_over)
        sums.add(block, trapezoid="trapezoid" in options.variants)
    return _summarize(sums, gallery, options)


@dataclass
class _Sums:
    """Sums of each query (Q,) over its right rows, 0 without any; ``first`` (K + 1,) counts first ones by rank."""

    precision: Float64Array
    penalty: Float64Array
    rank1: Float64Array
    r_precision: Float64Array
    map_at_r: Float64Array
    matches: IntArray
    first_match: IntArray
    first: Float64Array

    @classmethod
    def zero(cls, queries: int, max_rank: int) -> _Sums:
        sums = [np.zeros(queries) for _ in range(5)]
        counts = [np.zeros(queries, np.int64) for _ in range(2)]
        return cls(sums[0], sums[1], sums[2], sums[3], sums[4], counts[0], counts[1], np.zeros(max_rank + 1))

    def add(self, block: BlockRanks, *, trapezoid: bool) -> None:
        where = slice(block.start, block.start + len(block.matches))
        self.first_match[where], self.matches[where] = block.first_match, block.matches
        if block.identities is not None:
            self._add_first(block.identities, block.start)
        for ranks in block.rows:
            self._add_rows(ranks, block.start, trapezoid)
            if block.identities is None:
                self._add_first(ranks, block.start)

    def _add_first(self, ranks: RightRanks, start: int) -> None:
        beyond = len(self.first)
        self.first += np.bincount(np.minimum(ranks.rank, beyond), ranks.first, beyond + 1)[1:]
        np.add.at(self.rank1, start + ranks.query, ranks.first * (ranks.rank == 1))

    def _add_rows(self, ranks: RightRanks, start: int, trapezoid: bool) -> None:
        query = start + ranks.query
        matches = self.matches[query]
        precision = (ranks.before + 1) / ranks.rank
        early = ranks.chance * (ranks.rank <= matches)
        np.add.at(self.r_precision, query, early)
        np.add.at(self.map_at_r, query, early * precision)
        np.add.at(self.penalty, query, ranks.last * matches / ranks.rank)
        if trapezoid:
            earlier = np.where(ranks.rank > 1, ranks.before / np.maximum(ranks.rank - 1, 1), 1.0)
            precision = (precision + earlier) / 2
        np.add.at(self.precision, query, ranks.chance * precision)


def _summarize(sums: _Sums, gallery: int, options: MetricOptions) -> Metrics:
    matched = sums.matches > 0
    if not matched.any():
        raise NoMatchError(
            f"none of the {len(matched)} queries has a right answer in the gallery: the same identity"
            " in another camera; check the identities and cameras of both"
        )
    means = {
        name: np.divide(getattr(sums, name), sums.matches, out=np.zeros(len(matched)), where=matched)
        for name in ("precision", "r_precision", "map_at_r")
    }
    counted = np.ones_like(matched) if "all_queries" in options.variants else matched
    cmc = np.minimum(np.cumsum(sums.first[:-1]) / np.count_nonzero(counted), 1.0)
    return Metrics(
        mAP=float(means["precision"][counted].mean()),
        mINP=float(sums.penalty[counted].mean()),
        cmc=cmc,
        queries=len(matched),
        queries_without_match=int(np.count_nonzero(~matched)),
        gallery=gallery,
        average_precision=np.where(matched, means["precision"], np.nan),
        inverse_negative_penalty=np.where(matched, sums.penalty, np.nan),
        first_match=sums.first_match,
        rank1=np.where(matched, sums.rank1, np.nan),
        r_precision=float(means["r_precision"][counted].mean()),
        map_at_r=float(means["map_at_r"][counted].mean()),
        ties=options.ties,
        variants=options.variants,
        cmc_over=options.cmc_over,
    )
