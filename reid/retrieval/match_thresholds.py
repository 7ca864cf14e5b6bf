"""Is this the same person?  False-match rates and thresholds for every pair of cameras, without labels.

The scores of all pairs of crops of two cameras are, but for a few in a hundred, scores of different people.  The upper
half of their bulk is taken for that of a normal distribution: a line through its quantiles from the median to the 90th
percentile, on the scale of the standard normal, gives a centre and a spread for each pair of cameras.  The false-match
rate of a score is the share of this distribution that is at least as high.

The assumption: at most one pair of crops in ten shows the same object, and the tail of the scores of different objects
falls like that of a normal distribution.  docs/scores.md says how far the rates are from those counted with labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.cohort_rows import CohortRows, pool_of
from reid.retrieval.cohorts import CohortStatistics
from reid.retrieval.score_normalization import METHODS, SideTerms, usable_terms

SAMPLED = 256  # crops of a camera, the most that are paired
LEVELS = np.linspace(0.5, 0.9, 21)  # quantiles of the bulk that the line goes through
SMALLEST_SPREAD = 1e-6
SAME_RATE = 1e-4  # false-match rate at and below which two crops count as the same
OTHER_RATE = 1e-2  # false-match rate above which they count as different
NOBODY_RATE = 0.5  # false-alarm rate of the best answer above which nobody in the gallery is the query
VERSION = 1

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
    """How the normalized scores of different people are distributed, for every pair of cameras.

    Args:
        method: The score normalization, "csls" or "snorm".
        cameras: The C names, as in :class:`reid.retrieval.cohorts.CohortStatistics`.
        centre: (C, C) float64, the median for a query of one camera and a gallery row of another; NaN where the pair
            has too few crops.
        spread: (C, C) float64, the standard deviation of the upper half.

    Example:
        >>> table = MatchThresholds("csls", ("/",), np.array([[-1.0]]), np.array([[0.2]]))
        >>> round(float(table.thresholds(1e-3)[0, 0]), 3)
        -0.382
        >>> round(table.false_match_rate(-0.382, "/", "/"), 5)
        0.001
    """

    method: str
    cameras: tuple[str, ...]
    centre: Table
    spread: Table

    @classmethod
    def merged(cls, tables: Sequence[MatchThresholds]) -> MatchThresholds:
        """Join tables of the same gallery that hold for queries of different cameras."""
        centre, spread = (np.stack([getattr(table, name) for table in tables]) for name in ("centre", "spread"))
        held = np.isnan(centre).argmin(axis=0)[None]
        return cls(
            tables[0].method,
            tables[0].cameras,
            np.take_along_axis(centre, held, axis=0)[0],
            np.take_along_axis(spread, held, axis=0)[0],
        )

    def thresholds(self, false_match_rate: float) -> Table:
        """Return the lowest score (C, C) whose false-match rate is at most the wished one, above 0 and below 1.

        Raises:
            DataError: The rate is outside of its range.
        """
        if not 0 < false_match_rate < 1:
            raise DataError(f"expected a false-match rate above 0 and below 1, got {false_match_rate}")
        return self.centre + self.spread * -NormalDist().inv_cdf(false_match_rate)

    def false_match_rate(self, score: float, query_camera: str, gallery_camera: str) -> float:
        """Return the share of pairs of different people of two cameras that score at least so much.

        Args:
            score: The normalized score.
            query_camera: The camera of the query, "<category>/<camera>".
            gallery_camera: The camera of the gallery row.

        Returns:
            A rate in 0..1; NaN where the cameras are of different categories, or had too few crops.
        """
        pair = self._position(query_camera), self._position(gallery_camera)
        if -1 in pair:
            return math.nan
        return 0.5 * math.erfc((score - self.centre[pair]) / self.spread[pair] / math.sqrt(2))

    def _position(self, camera: str) -> int:
        """Return where a camera stands; that of its pool where it is unknown or was too small."""
        for name in (camera, pool_of(camera)):
            if name in self.cameras:
                position = self.cameras.index(name)
                if not np.isnan(self.centre[position]).all():
                    return position
        return -1

    def to_json(self) -> str:
        """Return the record as JSON."""
        table = {
            "version": VERSION,
            "method": self.method,
            "cameras": list(self.cameras),
            "centre": _with_null(self.centre),
            "spread": _with_null(self.spread),
        }
        return json.dumps(table)

    @classmethod
    def from_json(cls, text: str) -> MatchThresholds:
        """Return the record that :meth:`to_json` wrote.

        Raises:
            DataError: The text is something else, or of a newer version.
        """
        try:
            table: dict[str, Any] = json.loads(text)
            version, method = table["version"], table["method"]
            cameras = tuple(str(name) for name in table["cameras"])
            centre, spread = (np.array(table[name], dtype=np.float64) for name in ("centre", "spread"))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"match thresholds: expected their JSON, got something else ({error}); fit them again"
            ) from None
        shape = (len(cameras), len(cameras))
        if version != VERSION or method not in METHODS or centre.shape != shape or spread.shape != shape:
            raise DataError(f"match thresholds: of version {version!r} or damaged, expected {VERSION}; fit them again")
        return cls(method, cameras, centre, spread)


def _with_null(table: Table) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in table.tolist()]


def fit_thresholds(
    rows: CohortRows, statistics: CohortStatistics, query_cameras: Sequence[str] | None = None
) -> MatchThresholds:
    """Fit the distribution of the scores of different people for every pair of cameras, without labels.

    Args:
        rows: The rows of a gallery.
        statistics: Their cohort statistics.
        query_cameras: Fit the pairs of these cameras of queries only, "<category>/<camera>"; None fits all.

    Returns:
        The distributions; those of a pool hold for unknown cameras.
    """
    count = len(statistics.cameras)
    samples = [_sampled(rows, statistics, column) for column in range(count)]
    centre, spread = (np.full((count, count), np.nan) for _ in range(2))
    wanted = range(count) if query_cameras is None else np.unique(statistics.columns(query_cameras)).tolist()
    for query in (column for column in wanted if column >= 0):
        for answer in range(count):
            same_category = pool_of(statistics.cameras[query]) == pool_of(statistics.cameras[answer])
            if same_category and len(samples[query]) and len(samples[answer]):
                scores = _scores_between(rows, statistics, (query, samples[query]), (answer, samples[answer]))
                centre[query, answer], spread[query, answer] = _fit_upper_half(scores)
    return MatchThresholds(statistics.method, statistics.cameras, centre, spread)


def _sampled(rows: CohortRows, statistics: CohortStatistics, column: int) -> IntArray:
    """Return the rows (R,) of a camera with the smallest keys; none where the camera has too few for a cohort."""
    name = statistics.cameras[column]
    if statistics.columns([name])[0] != column:
        return np.zeros(0, np.int64)
    pooled = name == pool_of(name)
    mask = np.char.startswith(rows.cameras, name) if pooled else rows.cameras == name
    members = np.flatnonzero(mask)
    return np.sort(members[np.argsort(rows.keys[members], kind="stable")[:SAMPLED]])


def _scores_between(
    rows: CohortRows, statistics: CohortStatistics, queries: tuple[int, IntArray], answers: tuple[int, IntArray]
) -> FloatArray:
    """Return the normalized scores (P,) of rows, as if they were of the cameras of two columns; no row with itself."""
    (query_column, first), (answer_column, second) = queries, answers
    terms = [
        usable_terms(statistics.mean[some, column], statistics.deviation[some, column])
        for some, column in ((first, answer_column), (second, query_column))
    ]
    scores = METHODS[statistics.method](
        rows.vectors[first] @ rows.vectors[second].T,
        SideTerms(terms[0].mean[:, None], terms[0].deviation[:, None]),
        SideTerms(terms[1].mean[None], terms[1].deviation[None]),
    )
    different: FloatArray = scores[rows.images[first][:, None] != rows.images[second][None]]
    return different


def _fit_upper_half(scores: FloatArray) -> tuple[float, float]:
    """Return the centre and the spread of the line through the quantiles of the upper half of the bulk."""
    normal = np.array([NormalDist().inv_cdf(level) for level in LEVELS.tolist()])
    quantiles = np.quantile(scores, LEVELS)
    slope, intercept = np.polyfit(normal, quantiles, 1)
    return float(intercept), max(float(slope), SMALLEST_SPREAD)
