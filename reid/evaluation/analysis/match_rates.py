"""True- and false-match rates at a threshold, counted over all pairs of a query and a valid gallery row.

How many pairs of one identity, and of two identities, score at least the threshold?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.evaluation.analysis.intervals import LEVEL, REPLICATES, Interval, bootstrap_weights
from reid.evaluation.analysis.open_set import check_rate
from reid.evaluation.labels import Labels
from reid.evaluation.ranks import Float64Array
from reid.evaluation.score_blocks import (
    ScoreBlocks,
    Vectors,
    check_rows,
    check_vectors,
    inner_products_in_blocks,
    valid_blocks,
)
from reid.records import UNIT_TOLERANCE, IntArray

STEP = 2.0**-15  # between thresholds
LIMIT = 1 + 2.0**-6  # inner products of nearly unit vectors stay within it
BINS = round(2 * LIMIT / STEP)
FINEST, COARSEST = 16, 1024  # how many bins the histograms by identity join into one; both divide BINS
BY_IDENTITY_BYTES = 64 * 2**20
PAIRS_AT_ONCE = 2**21
DRAWN_BYTES = 4 * 2**20  # of each table of the replicates that are computed together


@dataclass(frozen=True)
class OperatingPoint:
    """The rates at the lowest threshold whose false-match rate (FPR) is at most ``wished``.

    ``true_match_rate`` (TPR) is the share of pairs of one identity that score at least ``threshold``.
    """

    wished: float
    threshold: float
    true_match_rate: Interval
    false_match_rate: float


@dataclass(frozen=True, eq=False)
class ScoreHistograms:
    """How pairs of one identity (``same``) and of two identities (``different``) score; int64 counts.

    ``same`` and ``different`` (BINS,): bin i holds the scores from ``-LIMIT + i * STEP`` to the next such value, so
    every rate is exact at the thresholds between bins.  ``same_by_identity`` and ``different_by_identity`` (I, C) are
    the same counts in coarser bins, for each identity of the queries.  ``scale`` is what one stands for:
    thresholds are multiplied by it.
    """

    same: IntArray
    different: IntArray
    same_by_identity: IntArray
    different_by_identity: IntArray
    scale: float = 1.0

    def rates(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return thresholds, and the true and the false match rate at each, (BINS + 1,); no score reaches the last."""
        thresholds = self.scale * (-LIMIT + STEP * np.arange(BINS + 1, dtype=np.float64))
        return thresholds, _at_least(self.same), _at_least(self.different)

    def threshold_for(self, false_match_rate: float) -> float:
        """Find the lowest threshold (in steps of ``STEP``) at which at most this share of wrong pairs match."""
        return float(self.rates()[0][self._threshold_index(false_match_rate)])

    def _threshold_index(self, false_match_rate: float) -> int:
        check_rate("false-match rate", false_match_rate)
        return int(np.argmax(self.rates()[2] <= false_match_rate))

    def equal_error(self) -> tuple[float, float]:
        """Find the rate and the threshold at which right pairs are refused as often as wrong pairs match.

        Between two thresholds, the rates are interpolated along a line.
        """
        thresholds, true, false = self.rates()
        excess = false - (1 - true)  # from 1 down to -1
        after = int(np.argmax(excess <= 0))
        share = excess[after - 1] / (excess[after - 1] - excess[after])
        rate = false[after - 1] + share * (false[after] - false[after - 1])
        return float(rate), float(thresholds[after - 1] + share * STEP * self.scale)

    def operating_points(
        self,
        false_match_rates: Sequence[float],
        *,
        level: float = LEVEL,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> tuple[OperatingPoint, ...]:
        """Find the true-match rate at each wished false-match rate, with a percentile bootstrap interval.

        The bootstrap draws identities of the queries with all their pairs.  Each replicate finds its own threshold, and
        its true-match rate is interpolated in the coarser bins.

        Args:
            false_match_rates: Wished rates, 0 or more and below 1.
            level: Level of the intervals.
            replicates: How often to resample.
            seed: Seed of the draws.

        Raises:
            DataError: No rate is given, or one outside of its range.
        """
        thresholds, true, false = self.rates()
        if not false_match_rates:
            raise DataError("operating points: expected at least one false-match rate, got none")
        indices = [self._threshold_index(rate) for rate in false_match_rates]
        drawn = self._drawn_rates(false_match_rates, replicates, seed)
        lows, highs = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=1)
        return tuple(
            OperatingPoint(
                wished,
                float(thresholds[index]),
                Interval(float(true[index]), float(low), float(high), level),
                float(false[index]),
            )
            for wished, index, low, high in zip(false_match_rates, indices, lows, highs, strict=True)
        )

    def _drawn_rates(self, wished_rates: Sequence[float], replicates: int, seed: int) -> Float64Array:
        """Interpolate the true-match rate of each replicate at each wished rate, (len(wished_rates), replicates)."""
        # A bin without pairs repeats the rates of the next one, which changes nothing that is interpolated.
        filled = np.flatnonzero(self.same_by_identity.any(axis=0) | self.different_by_identity.any(axis=0))
        same, different = (table[:, filled] for table in (self.same_by_identity, self.different_by_identity))
        at_once = max(1, DRAWN_BYTES // (8 * len(filled)))
        drawn = np.empty((len(wished_rates), replicates))
        done = 0
        for weights in bootstrap_weights(len(same), replicates, seed):
            for start in range(0, len(weights), at_once):
                some = weights[start : start + at_once]
                true, false = _at_least(some @ same), _at_least(some @ different)
                for row, wished in zip(drawn, wished_rates, strict=True):
                    row[done : done + len(some)] = _interpolated(true, false, wished)
                done += len(some)
        return drawn

    def coarse(self, bins: int = 65) -> tuple[Float64Array, IntArray, IntArray]:
        """Join bins for a plot: edges (bins + 1,), ``same`` and ``different`` (bins,); ``bins`` divides ``BINS``."""
        if bins < 1 or BINS % bins:
            raise DataError(f"score histogram: expected a number of bins that divides {BINS}, got {bins}")
        edges = self.scale * np.linspace(-LIMIT, LIMIT, bins + 1)
        return edges, self.same.reshape(bins, -1).sum(axis=1), self.different.reshape(bins, -1).sum(axis=1)


def score_histograms(
    query_vectors: npt.ArrayLike, gallery_vectors: npt.ArrayLike, labels: Labels, memory: int | None = None
) -> ScoreHistograms:
    """Count the scores of all valid pairs of a query and a gallery row.

    Args:
        query_vectors: Floats (Q, D), rows of unit length.
        gallery_vectors: Floats (G, D), rows of unit length.
        labels: Labels of both.
        memory: Bytes of scores to hold at a time.

    Raises:
        DataError: A vector does not have unit length, or all valid pairs are of one identity, or all of two.

    Example:
        >>> labels = Labels(["anna"], ["anna", "ben"], ["door"], ["hall", "hall"])
        >>> found = score_histograms(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1]]), labels)
        >>> 0 < found.threshold_for(0.001) < 1
        True
    """
    queries, gallery = check_vectors(query_vectors, gallery_vectors)
    check_rows(labels, len(queries), len(gallery))
    for name, vectors in (("query_vectors", queries), ("gallery_vectors", gallery)):
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        if np.abs(lengths - 1).max() > UNIT_TOLERANCE:
            raise DataError(f"{name}: row {int(np.argmax(np.abs(lengths - 1)))} does not have unit length")
    blocks, size = inner_products_in_blocks(queries, gallery, memory)
    return histograms_of_blocks(blocks, labels, size)


def histograms_of_blocks(blocks: ScoreBlocks, labels: Labels, size: int, scale: float = 1.0) -> ScoreHistograms:
    """Count any scores of all valid pairs of a query and a gallery row.

    Args:
        blocks: The scores.
        labels: The labels of queries and gallery rows.
        size: How many queries to score at a time.
        scale: A power of two that no score exceeds; larger ones count as the largest.

    Raises:
        DataError: All valid pairs are of one identity, or all of two.
    """
    _, identity = np.unique(labels.query_identities, return_inverse=True)
    same, different = (_Histogram(int(identity.max()) + 1) for _ in range(2))
    for start, scores, offsets, rows in valid_blocks(blocks, labels, size):
        if scale != 1:
            _scale(scores, scale)
        owners = identity[start : start + len(scores)]
        same.add(scores[offsets, rows], offsets, owners)
        scores[offsets, rows] = -np.inf
        step = max(1, PAIRS_AT_ONCE // labels.gallery)
        for low in range(0, len(scores), step):
            some = scores[low : low + step]
            different.add(some.ravel(), np.repeat(np.arange(len(some)), labels.gallery), owners[low : low + step])
    if not same.counts.any() or not different.counts.any():
        raise DataError("score histogram: expected valid pairs of one and of two identities, got only one of these")
    return ScoreHistograms(same.counts, different.counts, same.by_identity, different.by_identity, scale)


def _scale(scores: Vectors, scale: float) -> None:
    """Divide scores by a power of two, in place, and move those beyond it to the edge; -inf stays."""
    left_out = scores == -np.inf
    scores *= 1 / scale
    np.clip(scores, -1, 1, out=scores)
    scores[left_out] = -np.inf


class _Histogram:
    """Counts scores: all of them (BINS,), and those of each identity (I, C) in bins as fine as the memory allows."""

    def __init__(self, identities: int) -> None:
        self.fold = FINEST
        while self.fold < COARSEST and identities * (BINS // self.fold) * 8 > BY_IDENTITY_BYTES // 2:
            self.fold *= 2
        self.counts = np.zeros(BINS, np.int64)
        self.by_identity = np.zeros((identities, BINS // self.fold), np.int64)

    def add(self, scores: Vectors, query: IntArray, identity: IntArray) -> None:
        """Count the ``scores`` (P,) of pairs of ``query`` (P,), positions in ``identity`` (B,); -inf is not a score."""
        valid = scores > -np.inf
        # Scaling by a power of two is exact, so a score never slips over a threshold.
        bins = (np.floor(scores[valid] * (1 / STEP)) + LIMIT / STEP).astype(np.int64)
        self.counts += np.bincount(bins, minlength=BINS)
        width = self.by_identity.shape[1]
        cells = np.bincount(query[valid] * width + bins // self.fold, minlength=len(identity) * width)
        np.add.at(self.by_identity, identity, cells.reshape(len(identity), width))


def _at_least(counts: npt.NDArray[np.generic]) -> Float64Array:
    """Compute the share of the counts (..., B) in each bin and all higher ones, (..., B + 1); NaN without counts."""
    tail = np.cumsum(counts[..., ::-1], axis=-1, dtype=np.float64)[..., ::-1]
    tail = np.concatenate([tail, np.zeros_like(tail[..., :1])], axis=-1)
    with np.errstate(invalid="ignore"):
        shares: Float64Array = tail / tail[..., :1]
    return shares


def _interpolated(true: Float64Array, false: Float64Array, wished: float) -> Float64Array:
    """Interpolate the TPR (R,) at which the FPR is ``wished``; ``true`` and ``false`` (R, C + 1) fall from 1 to 0."""
    rows = np.arange(len(false))
    after = np.argmax(false <= wished, axis=1)
    before = np.maximum(after - 1, 0)
    drop = np.maximum(false[rows, before] - false[rows, after], np.finfo(np.float64).tiny)
    share = (false[rows, before] - wished) / drop
    rates: Float64Array = true[rows, before] + share * (true[rows, after] - true[rows, before])
    return rates
