"""Identification in the open set, in which a query may show somebody who is not in the gallery.

How often is the best answer to a query right and above the threshold, and how often does an unmatched query get an
answer at all?  A score of at least the threshold means "the same".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.evaluation.analysis.intervals import LEVEL, REPLICATES, ROUNDING, Interval, bootstrap_mean
from reid.evaluation.labels import LabelArray, Labels
from reid.evaluation.ranks import Float64Array
from reid.evaluation.score_blocks import ScoreBlocks, valid_blocks, vector_scores

FALSE_ALARM_RATES = (0.1, 0.01)


@dataclass(frozen=True, eq=False)
class BestScores:
    """The best right and the best wrong score of each query, (Q,) float64, -inf where there is none.

    A query without a right row is an unmatched query.
    """

    right: Float64Array
    wrong: Float64Array
    query_identities: LabelArray


@dataclass(frozen=True)
class Identification:
    """The share of known queries whose best answer is right and scores at least ``threshold``.

    ``rate`` has an interval over identities at this threshold.  ``false_alarm_rate`` is the share of unmatched queries
    that get any answer; it is at most the ``wished`` rate.  ``known`` and ``unmatched`` count the queries with and
    without a right answer in the gallery.
    """

    wished: float
    threshold: float
    rate: Interval
    false_alarm_rate: float
    known: int
    unmatched: int


def best_scores(
    query_vectors: npt.ArrayLike, gallery_vectors: npt.ArrayLike, labels: Labels, memory: int | None = None
) -> BestScores:
    """Find the best right and the best wrong score of each query.

    Args:
        query_vectors: Floats (Q, D), rows of unit length.
        gallery_vectors: Floats (G, D).
        labels: Labels of both.
        memory: Bytes of scores to hold at a time.

    Example:
        >>> labels = Labels(["anna"], ["anna", "ben"], ["door"], ["hall", "hall"])
        >>> best = best_scores(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1]]), labels)
        >>> best.right.tolist(), best.wrong.tolist()
        ([1.0], [0.0])
    """
    scores, size = vector_scores(query_vectors, gallery_vectors, labels, memory)
    return best_of_blocks(scores, labels, size)


def best_of_blocks(blocks: ScoreBlocks, labels: Labels, size: int) -> BestScores:
    """Find the best right and the best wrong score of each query by any scores, ``size`` queries at a time."""
    right, wrong = np.full(labels.queries, -np.inf), np.empty(labels.queries)
    for start, scores, offsets, rows in valid_blocks(blocks, labels, size):
        np.maximum.at(right, start + offsets, scores[offsets, rows])
        scores[offsets, rows] = -np.inf
        wrong[start : start + len(scores)] = scores.max(axis=1)
    return BestScores(right, wrong, labels.query_identities)


def identification_rates(
    best: BestScores,
    false_alarm_rates: Sequence[float],
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[Identification, ...]:
    """Compute the detection and identification rate at rank 1 (DIR) at each false-alarm rate (Phillips et al. 2011).

    A right answer that ties with a wrong one does not count.  The threshold lies just above the score of the first
    unmatched query that must not get an answer, so ties never raise the rate of false alarms.

    Args:
        best: The best scores of the queries.
        false_alarm_rates: Wished shares of unmatched queries that get an answer, 0 or more and below 1.
        level: Level of the intervals.
        replicates: How often to resample.
        seed: Seed of the draws.

    Raises:
        DataError: All queries have a right answer, or none has, or a rate is outside of its range.

    Example:
        >>> best = BestScores(np.array([0.9, -np.inf]), np.array([0.5, 0.6]), np.array(["anna", "ben"]))
        >>> (found,) = identification_rates(best, [0.1])
        >>> found.rate.value, found.known, found.unmatched
        (1.0, 1, 1)
    """
    unmatched = best.right == -np.inf
    if unmatched.all() or not unmatched.any():
        raise DataError(
            f"identification rate: {np.count_nonzero(unmatched)} of {len(unmatched)} queries are unmatched;"
            " expected some queries with and some without a right answer in the gallery"
        )
    alarms = np.sort(best.wrong[unmatched])[::-1]
    found = best.right[~unmatched]
    first = found > best.wrong[~unmatched]
    results = []
    for wished in false_alarm_rates:
        check_rate("false-alarm rate", wished)
        threshold = float(np.nextafter(alarms[int(wished * len(alarms) + ROUNDING)], np.inf))
        rate = bootstrap_mean(
            first & (found >= threshold), best.query_identities[~unmatched],
            level=level, replicates=replicates, seed=seed,
        )  # fmt: skip
        passed = float((alarms >= threshold).mean())
        results.append(Identification(wished, threshold, rate, passed, len(found), len(alarms)))
    return tuple(results)


def check_rate(name: str, rate: float) -> None:
    """Raise DataError unless a wished rate is 0 or more and below 1."""
    if not 0 <= rate < 1:
        raise DataError(f"expected a {name} of 0 or more and below 1, got {rate}")
