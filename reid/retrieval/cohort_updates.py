"""Cohort statistics of a gallery whose rows change, without measuring all of them again.

A row that comes or goes changes the statistics of those rows only that count it among their nearest, and of those that
are measured for the first time.  The result equals that of measuring everything again, up to the rounding of float32
inner products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.cohort_rows import COHORT_LIMIT, BoolArray, CohortRows, cohort_of, pool_of
from reid.retrieval.cohorts import (
    MARGIN,
    ROWS_AT_ONCE,
    CohortStatistics,
    cohort_sizes,
    measure_camera,
    measure_cohorts,
    measure_rows,
)


def add_rows(
    statistics: CohortStatistics, rows: CohortRows, added: CohortRows, *, limit: int = COHORT_LIMIT
) -> CohortStatistics:
    """Return the statistics of a gallery to which rows are added.

    Args:
        statistics: The statistics (N, C) of the rows, as :func:`reid.retrieval.cohorts.measure_cohorts` measures them.
        rows: The N rows of the gallery so far.
        added: The M rows that come after them.
        limit: The most crops of a camera that are compared, as when the statistics were measured.

    Returns:
        The statistics (N + M, C) of all rows.

    Raises:
        DataError: The statistics are those of other rows.

    Example:
        >>> rows = CohortRows.of_cameras(["door"] * 3, np.float32([[1, 0], [0, 1], [0.6, 0.8]]))
        >>> first, last = rows.select(np.arange(2)), rows.select(np.arange(2, 3))
        >>> grown = add_rows(measure_cohorts(first, first, "csls"), first, last)
        >>> grown.counts.tolist(), bool(np.allclose(grown.mean, measure_cohorts(rows, rows, "csls").mean))
        ([3, 3], True)
    """
    after = CohortRows.joined(rows, added)
    origin = np.concatenate([np.arange(len(rows.vectors)), np.full(len(added.vectors), -1)])
    return update_rows(statistics, rows, after, origin, limit=limit)


def remove_rows(
    statistics: CohortStatistics, rows: CohortRows, kept: BoolArray, *, limit: int = COHORT_LIMIT
) -> CohortStatistics:
    """Return the statistics of a gallery from which rows are removed.

    Args:
        statistics: The statistics (N, C) of the rows.
        rows: The N rows of the gallery so far.
        kept: (N,) bool, the rows that stay.
        limit: The most crops of a camera that are compared, as when the statistics were measured.

    Returns:
        The statistics of the rows that stay.

    Raises:
        DataError: The statistics are those of other rows.
    """
    return update_rows(statistics, rows, rows.select(kept), np.flatnonzero(kept), limit=limit)


def update_rows(
    statistics: CohortStatistics, before: CohortRows, after: CohortRows, origin: IntArray, *, limit: int = COHORT_LIMIT
) -> CohortStatistics:
    """Return the statistics of a gallery in which rows came and went.

    Args:
        statistics: The statistics (N, C) of the rows of before.
        before: The N rows.
        after: The M rows of now.
        origin: (M,) int64, the row of ``before`` that each row of now was, or -1.
        limit: The most crops of a camera that are compared, as when the statistics were measured.

    Returns:
        The statistics (M, C) of the rows of now.

    Raises:
        DataError: The statistics are those of other rows.
    """
    if len(statistics) != len(before.vectors):
        raise DataError(f"cohort statistics: of {len(statistics)} rows, expected {len(before.vectors)}; measure again")
    cohort = cohort_of(after, limit)
    cameras, counts, k = cohort_sizes(cohort, statistics.method)
    if cameras != statistics.cameras or not np.array_equal(k, statistics.k):
        return measure_cohorts(after, after, statistics.method, limit=limit)
    known = origin >= 0
    moved = statistics.select(np.maximum(origin, 0))
    updated = replace(moved, counts=counts)
    for table in (updated.mean, updated.deviation, updated.lowest):
        table[~known] = np.nan
    gone, come = _changes(cohort_of(before, limit).members, cohort.members, origin)
    affected = np.zeros(moved.mean.shape, np.bool_)
    for changed, source in ((gone, before), (come, after)):
        affected |= known[:, None] & _are_affected(moved, after, changed, source)
    pools = [column for column, name in enumerate(cameras) if name == pool_of(name)]
    whole = ~known | affected[:, pools].any(axis=1)
    measure_rows(updated, after, np.flatnonzero(whole), cohort)
    for column in (column for column in range(len(cameras)) if column not in pools):
        measure_camera(updated, after, np.flatnonzero(affected[:, column] & ~whole), cohort, cameras[column])
    return updated


def _changes(
    before: Mapping[str, IntArray], after: Mapping[str, IntArray], origin: IntArray
) -> tuple[dict[str, IntArray], dict[str, IntArray]]:
    """Return the rows that left the cohort of each camera (rows of before) and those that came (rows of after)."""
    gone = {name: np.setdiff1d(members, origin[after[name]]) for name, members in before.items()}
    come = {name: members[~np.isin(origin[members], before[name])] for name, members in after.items()}
    return gone, come


def _are_affected(
    statistics: CohortStatistics, rows: CohortRows, changed: Mapping[str, IntArray], source: CohortRows
) -> BoolArray:
    """Return (M, C) bool: rows that count a changed row of ``source`` among their nearest of a camera, or might."""
    affected = np.zeros(statistics.mean.shape, np.bool_)
    for column, name in enumerate(statistics.cameras):
        members = changed[name]
        for start in range(0, len(rows.vectors) if len(members) else 0, ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            scores: FloatArray = rows.vectors[block] @ source.vectors[members].T
            scores[rows.images[block][:, None] == source.images[members][None, :]] = -np.inf
            affected[block, column] = scores.max(axis=1) >= statistics.lowest[block, column] - MARGIN
    return affected
