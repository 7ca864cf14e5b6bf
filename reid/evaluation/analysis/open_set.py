"""When to believe a match: rates and thresholds where a query may show a stranger.

Two questions.  Identification: is the best answer to a query right and above the threshold, and how
often does a stranger get an answer at all.  Verification: over all pairs of a query and a valid
gallery row, how many of one identity, and of two, score at least the threshold.  "At least the
threshold" means "the same" throughout.  Nothing here knows files or samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.evaluation.analysis.intervals import LEVEL, REPLICATES, ROUNDING, Interval, bootstrap_mean, bootstrap_weights
from reid.evaluation.answers import Labels, answers_to
from reid.evaluation.labels import MarketLabels
from reid.evaluation.ranks import Float64Array
from reid.evaluation.score_blocks import Vectors, block_size, check_vectors, inner_products
from reid.records import UNIT_TOLERANCE, IntArray

STEP = 2.0**-15  # between thresholds
LIMIT = 1 + 2.0**-6  # inner products of nearly unit vectors stay within
BINS = round(2 * LIMIT / STEP)
FINEST, COARSEST = 16, 1024  # bins in one, of the histograms by identity; both divide BINS
BY_IDENTITY_BYTES = 64 * 2**20
PAIRS_AT_ONCE = 2**21


@dataclass(frozen=True, eq=False)
class BestScores:
    """The best right and the best wrong score of each query, (Q,) float64, -inf where there is none.

    A query without a right row is a stranger.
    """

    right: Float64Array
    wrong: Float64Array
    query_identities: Labels


@dataclass(frozen=True)
class Identification:
    """The share of known queries whose best answer is right and scores at least ``threshold``.

    ``rate`` has an interval over identities at this threshold.  ``false_alarm_rate`` is the share of
    strangers that get any answer, at most the ``wished`` one; ``known`` and ``strangers`` count queries.
    """

    wished: float
    threshold: float
    rate: Interval
    false_alarm_rate: float
    known: int
    strangers: int


@dataclass(frozen=True)
class OperatingPoint:
    """``true_match_rate`` (TPR) at the lowest threshold whose ``false_match_rate`` (FPR) is at most ``wished``."""

    wished: float
    threshold: float
    true_match_rate: Interval
    false_match_rate: float


@dataclass(frozen=True, eq=False)
class ScoreHistograms:
    """How pairs of one identity (``same``) and of two (``different``) score; counts, int64.

    ``same`` and ``different`` (BINS,): bin i holds scores from ``-LIMIT + i * STEP`` to the next, so
    every rate is exact at the thresholds between bins.  ``same_by_identity`` and
    ``different_by_identity`` (I, C) are the same in coarser bins by identity of the query.
    """

    same: IntArray
    different: IntArray
    same_by_identity: IntArray
    different_by_identity: IntArray

    def rates(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Thresholds, true and false match rate at each, all (BINS + 1,); the last lets none through."""
        thresholds = -LIMIT + STEP * np.arange(BINS + 1, dtype=np.float64)
        return thresholds, _at_least(self.same), _at_least(self.different)

    def threshold_for(self, false_match_rate: float) -> float:
        """The lowest threshold (in steps of ``STEP``) at which at most this share of wrong pairs match."""
        return float(self.rates()[0][self._place(false_match_rate)])

    def _place(self, false_match_rate: float) -> int:
        _check_rate("false-match rate", false_match_rate)
        return int(np.argmax(self.rates()[2] <= false_match_rate))

    def equal_error(self) -> tuple[float, float]:
        """(rate, threshold) where as many right pairs are refused as wrong ones match; straight between steps."""
        thresholds, true, false = self.rates()
        excess = false - (1 - true)  # from 1 down to -1
        after = int(np.argmax(excess <= 0))
        share = excess[after - 1] / (excess[after - 1] - excess[after])
        rate = false[after - 1] + share * (false[after] - false[after - 1])
        return float(rate), float(thresholds[after - 1] + share * STEP)

    def operating_points(
        self,
        false_match_rates: Sequence[float],
        *,
        level: float = LEVEL,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> tuple[OperatingPoint, ...]:
        """TPR at each wished FPR, with a percentile bootstrap interval over the identities of the queries.

        Each replicate draws identities with all their pairs and finds its own threshold; its TPR is
        interpolated in the coarser bins.
        """
        thresholds, true, false = self.rates()
        if not false_match_rates:
            raise DataError("operating points: expected at least one false-match rate, got none")
        places = [self._place(rate) for rate in false_match_rates]
        drawn = np.empty((len(places), replicates))
        done = 0
        for weights in bootstrap_weights(len(self.same_by_identity), replicates, seed):
            true_drawn, false_drawn = (
                _at_least(weights @ table) for table in (self.same_by_identity, self.different_by_identity)
            )
            for row, wished in zip(drawn, false_match_rates, strict=True):
                row[done : done + len(weights)] = _interpolated(true_drawn, false_drawn, wished)
            done += len(weights)
        lows, highs = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=1)
        return tuple(
            OperatingPoint(
                wished,
                float(thresholds[place]),
                Interval(float(true[place]), float(low), float(high), level),
                float(false[place]),
            )
            for wished, place, low, high in zip(false_match_rates, places, lows, highs, strict=True)
        )

    def coarse(self, bins: int = 65) -> tuple[Float64Array, IntArray, IntArray]:
        """Edges (bins + 1,), ``same`` and ``different`` (bins,) for a plot; ``bins`` must divide ``BINS``."""
        if bins < 1 or BINS % bins:
            raise DataError(f"score histogram: expected a number of bins that divides {BINS}, got {bins}")
        edges = np.linspace(-LIMIT, LIMIT, bins + 1)
        return edges, self.same.reshape(bins, -1).sum(axis=1), self.different.reshape(bins, -1).sum(axis=1)


def best_scores(
    query_vectors: npt.ArrayLike, gallery_vectors: npt.ArrayLike, labels: MarketLabels, memory: int | None = None
) -> BestScores:
    """Best right and wrong score of each query (Q, D) in the gallery (G, D), under the rule of ``labels``.

    ``memory`` bounds the bytes of scores held at a time, here and below.
    """
    queries, gallery = check_vectors(query_vectors, gallery_vectors)
    answers = answers_to(len(queries), len(gallery), **vars(labels))
    size = block_size(len(gallery), gallery.itemsize, memory)
    scores = inner_products(queries, gallery, size)
    right, wrong = np.full(len(queries), -np.inf), np.empty(len(queries))
    for start in range(0, len(queries), size):
        part = scores(start, min(start + size, len(queries)))
        offsets, rows = answers.apply(part, start)
        np.maximum.at(right, start + offsets, part[offsets, rows])
        part[offsets, rows] = -np.inf
        wrong[start : start + len(part)] = part.max(axis=1)
    return BestScores(right, wrong, answers.query_identities)


def identification_rates(
    best: BestScores,
    false_alarm_rates: Sequence[float],
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[Identification, ...]:
    """Detection and identification rate at rank 1 (DIR) at each false-alarm rate (Phillips et al. 2011).

    A right answer that ties with a wrong one does not count.  The threshold lies just above the
    score of the first stranger that must not pass, so ties of strangers never raise the alarms.
    """
    unknown_domain = best.right == -np.inf
    if unknown_domain.all() or not unknown_domain.any():
        raise DataError(
            f"identification rate: {np.count_nonzero(unknown_domain)} of {len(unknown_domain)} queries are strangers;"
            " expected some queries with and some without a right answer in the gallery"
        )
    alarms = np.sort(best.wrong[unknown_domain])[::-1]
    found = best.right[~unknown_domain]
    first = found > best.wrong[~unknown_domain]
    results = []
    for wished in false_alarm_rates:
        _check_rate("false-alarm rate", wished)
        threshold = float(np.nextafter(alarms[int(wished * len(alarms) + ROUNDING)], np.inf))
        rate = bootstrap_mean(
            first & (found >= threshold), best.query_identities[~unknown_domain],
            level=level, replicates=replicates, seed=seed,
        )  # fmt: skip
        passed = float((alarms >= threshold).mean())
        results.append(Identification(wished, threshold, rate, passed, len(found), len(alarms)))
    return tuple(results)


def score_histograms(
    query_vectors: npt.ArrayLike, gallery_vectors: npt.ArrayLike, labels: MarketLabels, memory: int | None = None
) -> ScoreHistograms:
    """Histograms of the scores of all valid pairs of queries (Q, D) and gallery (G, D), rows of unit length."""
    queries, gallery = check_vectors(query_vectors, gallery_vectors)
    for name, vectors in (("query_vectors", queries), ("gallery_vectors", gallery)):
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        if np.abs(lengths - 1).max() > UNIT_TOLERANCE:
            raise DataError(f"{name}: row {int(np.argmax(np.abs(lengths - 1)))} does not have unit length")
    answers = answers_to(len(queries), len(gallery), **vars(labels))
    size = block_size(len(gallery), gallery.itemsize, memory)
    scores = inner_products(queries, gallery, size)
    _, identity = np.unique(answers.query_identities, return_inverse=True)
    same, different = (_Histogram(int(identity.max()) + 1) for _ in range(2))
    for start in range(0, len(queries), size):
        part = scores(start, min(start + size, len(queries)))
        offsets, rows = answers.apply(part, start)
        who = identity[start : start + len(part)]
        same.add(part[offsets, rows], offsets, who)
        part[offsets, rows] = -np.inf
        step = max(1, PAIRS_AT_ONCE // len(gallery))
        for low in range(0, len(part), step):
            some = part[low : low + step]
            different.add(some.ravel(), np.repeat(np.arange(len(some)), len(gallery)), who[low : low + step])
    if not same.counts.any() or not different.counts.any():
        raise DataError("score histogram: expected valid pairs of one and of two identities, got only one kind")
    return ScoreHistograms(same.counts, different.counts, same.by_identity, different.by_identity)


class _Histogram:
    """Counts (BINS,) of all scores and (I, C) by identity in bins as fine as the memory allows."""

    def __init__(self, identities: int) -> None:
        self.fold = FINEST
        while self.fold < COARSEST and identities * (BINS // self.fold) * 8 > BY_IDENTITY_BYTES // 2:
            self.fold *= 2
        self.counts = np.zeros(BINS, np.int64)
        self.by_identity = np.zeros((identities, BINS // self.fold), np.int64)

    def add(self, scores: Vectors, query: IntArray, identity: IntArray) -> None:
        """Count ``scores`` (P,) of pairs of ``query`` (P,), a position in ``identity`` (B,); -inf is not a score."""
        valid = scores > -np.inf
        # Scaling by a power of two is exact, so a score never slips over a threshold.
        bins = (np.floor(scores[valid] * (1 / STEP)) + LIMIT / STEP).astype(np.int64)
        self.counts += np.bincount(bins, minlength=BINS)
        width = self.by_identity.shape[1]
        cells = np.bincount(query[valid] * width + bins // self.fold, minlength=len(identity) * width)
        np.add.at(self.by_identity, identity, cells.reshape(len(identity), width))


def _at_least(counts: npt.NDArray[np.generic]) -> Float64Array:
    """Share of the counts (..., B) in each bin and all higher ones, (..., B + 1); NaN where there are none."""
    tail = np.cumsum(counts[..., ::-1], axis=-1, dtype=np.float64)[..., ::-1]
    tail = np.concatenate([tail, np.zeros_like(tail[..., :1])], axis=-1)
    with np.errstate(invalid="ignore"):
        shares: Float64Array = tail / tail[..., :1]
    return shares


def _interpolated(true: Float64Array, false: Float64Array, wished: float) -> Float64Array:
    """TPR (R,) where the FPR falls through ``wished``; ``true`` and ``false`` (R, C + 1) fall from 1 to 0."""
    rows = np.arange(len(false))
    after = np.argmax(false <= wished, axis=1)
    before = np.maximum(after - 1, 0)
    drop = np.maximum(false[rows, before] - false[rows, after], np.finfo(np.float64).tiny)
    share = (false[rows, before] - wished) / drop
    rates: Float64Array = true[rows, before] + share * (true[rows, after] - true[rows, before])
    return rates


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise DataError(f"expected a {name} of 0 or more and below 1, got {rate}")
