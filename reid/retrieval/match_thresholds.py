"""Is this the same person?  False-match rates and thresholds for every pair of cameras, with and without labels.

Answers are ranked by normalized scores but judged by their similarity: a normalized score says which answer is best,
and no longer how good it is, because it compares a query with its own neighbours.

With labels, the rates are counted.  Without, they are fitted.  The similarities of all pairs of crops of two cameras
are, but for one in a hundred, those of different people.  Their upper tail is taken for that of a normal distribution:
a line through its quantiles from the 70th to the 97th percentile, on the scale of the standard normal, gives a
distribution for each pair of cameras.  The false-match rate of a similarity is the share of it that is at least as
high.

The assumption: at most one pair of crops in a hundred shows the same object, and the tail of the similarities of
different objects falls like that of a normal distribution.  Where more pairs show the same object, the rates are too
high, and verdicts too careful.  docs/scores.md says how far the rates are from those counted with labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.cohort_rows import BoolArray, CohortRows, pool_of
from reid.retrieval.cohorts import FEWEST, CohortStatistics
from reid.structured_text import parse_json

SAMPLED, COUNTED = 256, 2048  # crops of a camera, the most that are paired without and with labels
LEVELS = np.linspace(0.7, 0.97, 28)  # quantiles that the line goes through
SMALLEST_SPREAD = 1e-6
SAME_RATE = 1e-4  # false-match rate at and below which two crops count as the same
OTHER_RATE = 1e-2  # false-match rate above which they count as different
NOBODY_RATE = 0.9  # false-alarm rate of the best answer above which nobody in the gallery is the query
VERSION = 1

FITTED_RATES = (0.5, 0.01)  # two false-match rates fix the line of a fit
COUNTED_RATES = (0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5)  # at which scores are counted
SCORES, LABELS = "scores", "labels"  # where rates come from

Table = npt.NDArray[np.float64]


class MatchVerdict(StrEnum):
    """Whether two crops show the same person or object."""

    SAME = "same"
    UNDECIDED = "undecided"
    OTHER = "other"


def verdict_of(rate: float, same: float = SAME_RATE, other: float = OTHER_RATE) -> MatchVerdict:
    """Judge an answer by its false-match rate.

    Args:
        rate: The false-match rate of its score.
        same: The highest rate of the verdict "same".
        other: The rate above which the verdict is "other".

    Example:
        >>> [str(verdict_of(rate)) for rate in (1e-5, 1e-3, 0.2)]
        ['same', 'undecided', 'other']
    """
    if rate <= same:
        return MatchVerdict.SAME
    return MatchVerdict.UNDECIDED if rate <= other else MatchVerdict.OTHER


def false_alarm_rate(rate: float, rows: int) -> float:
    """Return how often a search for somebody who is not in the gallery gets so good an answer.

    Args:
        rate: The false-match rate of the answer.
        rows: How many rows may answer, counted as independent.

    Example:
        >>> round(false_alarm_rate(1e-3, 500), 2)
        0.39
    """
    return -math.expm1(rows * math.log1p(-min(rate, 1 - 1e-12)))


@dataclass(frozen=True, eq=False)
class MatchThresholds:
    """How the similarities of different people are distributed, for every pair of cameras.

    Between the rates, and beyond them, similarities follow a line on the scale of the standard normal distribution.

    Args:
        cameras: The C names, as in :class:`reid.retrieval.cohorts.CohortStatistics`.
        rates: (R,) float64 false-match rates, descending, at least two.
        scores: (R, C, C) float64, the similarities of a query of one camera and a gallery row of another that have
            these rates; NaN where the pair has too few crops.
        source: Where the rates come from: "scores" without labels, "labels" with them.

    Example:
        >>> table = MatchThresholds(("/",), np.array([0.5, 0.01]), np.array([[[0.1]], [[0.6]]]), "scores")
        >>> round(float(table.thresholds(1e-3)[0, 0]), 3)
        0.764
        >>> round(table.false_match_rate(0.764, "/", "/"), 5)
        0.001
    """

    cameras: tuple[str, ...]
    rates: Table
    scores: Table
    source: str

    @classmethod
    def merged(cls, tables: Sequence[MatchThresholds]) -> MatchThresholds:
        """Join tables of the same gallery that hold for queries of different cameras."""
        stacked = np.stack([table.scores for table in tables])
        held = np.isnan(stacked[:, 0]).argmin(axis=0)[None, None]
        return replace(tables[0], scores=np.take_along_axis(stacked, held, axis=0)[0])

    def thresholds(self, false_match_rate: float) -> Table:
        """Return the lowest score (C, C) whose false-match rate is at most the wished one, above 0 and below 1.

        Raises:
            DataError: The rate is outside of its range.
        """
        if not 0 < false_match_rate < 1:
            raise DataError(f"expected a false-match rate above 0 and below 1, got {false_match_rate}")
        found = np.full(self.scores.shape[1:], np.nan)
        for first, second in np.argwhere(~np.isnan(self.scores[0])).tolist():
            normal, scores = self._line(first, second)
            found[first, second] = _along(_normal_of(false_match_rate), normal, scores)
        return found

    def false_match_rate(self, score: float, query_camera: str, gallery_camera: str) -> float:
        """Return the share of pairs of different people of two cameras that score at least so much.

        Args:
            score: The similarity.
            query_camera: The camera of the query, "<category>/<camera>".
            gallery_camera: The camera of the gallery row.

        Returns:
            A rate in 0..1; NaN where the cameras are of different categories, or had too few crops.
        """
        first = self._position(query_camera, self.scores[0])
        second = self._position(gallery_camera, self.scores[0].T)
        if -1 in (first, second) or np.isnan(self.scores[0, first, second]):
            return math.nan
        normal, scores = self._line(first, second)
        return 0.5 * math.erfc(_along(score, scores, normal) / math.sqrt(2))

    def _position(self, camera: str, table: Table) -> int:
        """Return the row of a camera in a table (C, C); that of its pool where it is unknown or was too small."""
        for name in (camera, pool_of(camera)):
            if name in self.cameras:
                position = self.cameras.index(name)
                if not np.isnan(table[position]).all():
                    return position
        return -1

    def _line(self, first: int, second: int) -> tuple[Table, Table]:
        """Return points of a pair of cameras: on the scale of the standard normal, and scores, both ascending (P,)."""
        scores = self.scores[:, first, second]
        known = ~np.isnan(scores)
        normal = np.array([_normal_of(rate) for rate in self.rates[known].tolist()])
        return normal, np.maximum.accumulate(scores[known] + SMALLEST_SPREAD * np.arange(known.sum()))

    def to_json(self) -> str:
        """Return the record as JSON."""
        scores = [[[None if math.isnan(value) else value for value in row] for row in part] for part in self.scores]
        table = {"version": VERSION, "cameras": list(self.cameras), "source": self.source}
        return json.dumps({**table, "rates": self.rates.tolist(), "scores": scores})

    @classmethod
    def from_json(cls, text: str) -> MatchThresholds:
        """Return the record that :meth:`to_json` wrote.

        Raises:
            DataError: The text is something else, or of a newer version.
        """
        try:
            table: dict[str, Any] = parse_json(text)
            version, source = table["version"], str(table["source"])
            cameras = tuple(str(name) for name in table["cameras"])
            rates, scores = (np.array(table[name], dtype=np.float64) for name in ("rates", "scores"))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"match thresholds: expected their JSON, got {error!r}; fit them again") from None
        shape = (len(rates), len(cameras), len(cameras))
        if (
            version != VERSION
            or source not in (SCORES, LABELS)
            or scores.shape != shape
            or len(rates) < len(FITTED_RATES)
        ):
            raise DataError(f"match thresholds: damaged, or not of version {VERSION}; fit them again")
        return cls(cameras, rates, scores, source)


def _normal_of(rate: float) -> float:
    """Return the value that a standard normal variable exceeds with this probability."""
    return -NormalDist().inv_cdf(rate)


def _along(x: float, points: Table, values: Table) -> float:
    """Interpolate along a line through points (P,), ascending, and extrapolate it beyond the first and the last."""
    segment = int(np.clip(np.searchsorted(points, x) - 1, 0, len(points) - 2))
    slope = (values[segment + 1] - values[segment]) / (points[segment + 1] - points[segment])
    return float(values[segment] + slope * (x - points[segment]))


def fit_thresholds(
    rows: CohortRows,
    statistics: CohortStatistics,
    query_cameras: Sequence[str] | None = None,
    identities: Sequence[str] | None = None,
) -> MatchThresholds:
    """Find how the scores of different people are distributed for every pair of cameras.

    Args:
        rows: The N rows of a gallery.
        statistics: Their cohort statistics.
        query_cameras: Take the pairs of these cameras of queries only, "<category>/<camera>"; None takes all.
        identities: Who each row shows, "" where unknown: rates are counted over pairs of different known identities.
            None: rates are fitted without labels.

    Returns:
        The distributions; those of a pool hold for unknown cameras.
    """
    count = len(statistics.cameras)
    columns = range(count) if query_cameras is None else sorted({*statistics.columns(query_cameras).tolist()})
    table = _fit(rows, statistics, [column for column in columns if column >= 0], identities)
    rates = np.array(FITTED_RATES if identities is None else COUNTED_RATES)
    return MatchThresholds(statistics.cameras, rates, table, SCORES if identities is None else LABELS)


def refit_thresholds(
    fitted: MatchThresholds | None,
    before: tuple[CohortRows, CohortStatistics],
    after: tuple[CohortRows, CohortStatistics],
) -> MatchThresholds:
    """Return what :func:`fit_thresholds` returns without labels, from what it returned before rows came or went.

    Only the pairs of cameras are fitted again of which another crop is paired now.

    Args:
        fitted: The distributions of before; None where there are none.
        before: The rows of before and their statistics.
        after: Those of now.
    """
    rows, statistics = after
    if fitted is None or fitted.source != SCORES or fitted.cameras != statistics.cameras:
        return fit_thresholds(rows, statistics)
    same = [_pairs_the_same(before, after, column) for column in range(len(statistics.cameras))]
    if all(same):
        return fitted
    kept: BoolArray = np.array(same)[:, None] & np.array(same)[None, :]
    table = _fit(rows, statistics, range(len(statistics.cameras)), skip=kept)
    return MatchThresholds(statistics.cameras, fitted.rates, np.where(kept, fitted.scores, table), SCORES)


def _pairs_the_same(
    before: tuple[CohortRows, CohortStatistics], after: tuple[CohortRows, CohortStatistics], column: int
) -> bool:
    """Return whether the crops of a camera that are paired without labels are the same before and after."""
    old, new = (_sampled(rows, statistics, column, SAMPLED) for rows, statistics in (before, after))
    return np.array_equal(before[0].images[old], after[0].images[new]) and np.array_equal(
        before[0].vectors[old], after[0].vectors[new]
    )


def _fit(
    rows: CohortRows,
    statistics: CohortStatistics,
    wanted: Sequence[int],
    identities: Sequence[str] | None = None,
    skip: BoolArray | None = None,
) -> Table:
    """Return the scores (R, C, C) of the rates for queries of the wanted columns, but for pairs (C, C) to skip."""
    count = len(statistics.cameras)
    limit = SAMPLED if identities is None else COUNTED
    samples = [_sampled(rows, statistics, column, limit) for column in range(count)]
    rates = np.array(FITTED_RATES if identities is None else COUNTED_RATES)
    table = np.full((len(rates), count, count), np.nan)
    for query, answer in ((query, answer) for query in wanted for answer in range(count)):
        same_category = pool_of(statistics.cameras[query]) == pool_of(statistics.cameras[answer])
        skipped = skip is not None and skip[query, answer]
        if same_category and not skipped and len(samples[query]) and len(samples[answer]):
            scores, different = _scores_between(rows, samples[query], samples[answer], identities)
            fit = _fit_upper_tail(scores[different]) if identities is None else _count(scores[different], rates)
            table[:, query, answer] = fit
    return table


def _sampled(rows: CohortRows, statistics: CohortStatistics, column: int, limit: int) -> IntArray:
    """Return the rows (R,) of a camera with the smallest keys; none where the camera has too few for a cohort."""
    name = statistics.cameras[column]
    if statistics.columns([name])[0] != column or statistics.counts[column] < FEWEST:
        return np.zeros(0, np.int64)
    pooled = name == pool_of(name)
    mask = np.char.startswith(rows.cameras, name) if pooled else rows.cameras == name
    members = np.flatnonzero(mask)
    return np.sort(members[np.argsort(rows.keys[members], kind="stable")[:limit]])


def _scores_between(
    rows: CohortRows, first: IntArray, second: IntArray, identities: Sequence[str] | None
) -> tuple[FloatArray, BoolArray]:
    """Return the similarities (A, B) of rows (A,) and (B,), and which of them count.

    Pairs of one image do not count, and with labels neither do those of one identity or of an unknown one.
    """
    scores = rows.vectors[first] @ rows.vectors[second].T
    different: BoolArray = rows.images[first][:, None] != rows.images[second][None]
    if identities is not None:
        names = np.asarray(identities, dtype=np.str_)
        different &= names[first][:, None] != names[second][None]
        different &= (names[first] != "")[:, None] & (names[second] != "")[None]
    return scores, different


def _fit_upper_tail(scores: FloatArray) -> Table:
    """Return the scores (2,) of FITTED_RATES on the line through the quantiles of the upper tail."""
    normal = np.array([NormalDist().inv_cdf(level) for level in LEVELS.tolist()])
    slope, intercept = np.polyfit(normal, np.quantile(scores, LEVELS), 1)
    line: Table = intercept + max(float(slope), SMALLEST_SPREAD) * np.array([_normal_of(rate) for rate in FITTED_RATES])
    return line


def _count(scores: FloatArray, rates: Table) -> Table:
    """Return the scores (R,) just above which at most these shares of scores lie; NaN where less than one may."""
    ordered = np.sort(scores)[::-1].astype(np.float64)
    allowed = np.floor(rates * len(ordered) + 1e-9).astype(np.int64)
    found: Table = np.full(len(rates), np.nan)
    counted = (allowed >= 1) & (allowed < len(ordered))
    found[counted] = np.nextafter(ordered[allowed[counted]], np.inf)
    if np.count_nonzero(counted) < len(FITTED_RATES):
        return np.full(len(rates), np.nan)
    return found
