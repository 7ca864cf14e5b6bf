"""How sure a score is, and whether one run is really better than another on the same queries.

Queries of one identity are alike, so resampling single queries is too sure of itself when an
identity is asked for many times; with identities given, whole identities are drawn instead.
Nothing here knows vectors; everything is drawn from ``seed``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.evaluation.labels import check_labels
from reid.evaluation.metrics import Metrics
from reid.evaluation.ranks import Float64Array
from reid.records import IntArray

LEVEL = 0.95
REPLICATES = 2000
DRAWN_AT_ONCE = 2**20  # random numbers held in memory
ROUNDING = 1e-9  # sums that differ by less are the same sum added in another order


@dataclass(frozen=True)
class Interval:
    """An estimate and its percentile bootstrap interval at ``level`` (0.95: 95 %)."""

    value: float
    low: float
    high: float
    level: float = LEVEL


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """Second run minus first on the same queries, in one per-query value.

    ``p_value``: how often a difference at least this large, of either sign, appears when the runs
    are exchanged at random query by query (or identity by identity).  ``differences`` (Q,) float64,
    NaN for queries without a match; ``wins``, ``losses`` and ``draws`` count the queries on which the
    second run is better, worse, equal; ``order`` lists the matched queries, int64, from the second
    run's greatest win to its greatest loss.
    """

    difference: Interval
    p_value: float
    differences: Float64Array
    wins: int
    losses: int
    draws: int
    order: IntArray


def bootstrap_mean(
    values: npt.ArrayLike,
    identities: npt.ArrayLike | None = None,
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Percentile interval (Efron 1979) of the mean of ``values`` (Q,) floats; NaN are left out.

    ``identities`` (Q,), strings or integers: draw identities instead of queries; the mean stays that
    over queries.
    """
    sums, counts = _clusters(values, identities, level, replicates)
    means = np.concatenate(
        [sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1) for drawn in _draws(len(sums), replicates, seed)]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), level)


def metric_intervals(
    metrics: Metrics,
    query_identities: npt.ArrayLike | None = None,
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of "mAP", "mINP" and "rank1", over queries or over the identities of the queries (Q,)."""
    values = {
        "mAP": metrics.average_precision,
        "mINP": metrics.inverse_negative_penalty,
        "rank1": metrics.rank1,
    }
    return {
        name: bootstrap_mean(
            metrics.averaged(column), query_identities, level=level, replicates=replicates, seed=seed
        )
        for name, column in values.items()
    }  # fmt: skip


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    identities: npt.ArrayLike | None = None,
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> PairedDifference:
    """Compare a per-query value (Q,) of two runs, e.g. ``average_precision`` or ``rank1`` of their metrics.

    Row i of both must be the same query.  The p-value is that of the sign-flip (Fisher's paired
    randomization) test, by identity if ``identities`` (Q,) are given; never 0, at best
    1 / (replicates + 1).
    """
    before, after = (np.asarray(values, np.float64) for values in (first, second))
    if before.shape != after.shape or before.ndim != 1:
        raise DataError(f"compare: expected one value a query from both runs, got {before.shape} and {after.shape}")
    if np.any(np.isnan(before) != np.isnan(after)):
        where = int(np.argmax(np.isnan(before) != np.isnan(after)))
        raise DataError(f"compare: query {where} has a right answer in one run only; the runs differ in their data")
    differences = after - before
    interval = bootstrap_mean(differences, identities, level=level, replicates=replicates, seed=seed)
    sums, _ = _clusters(differences, identities, level, replicates)
    known = np.flatnonzero(~np.isnan(differences))
    return PairedDifference(
        interval,
        _sign_flip(sums, replicates, seed),
        differences,
        int(np.count_nonzero(differences[known] > 0)),
        int(np.count_nonzero(differences[known] < 0)),
        int(np.count_nonzero(differences[known] == 0)),
        known[np.argsort(-differences[known], kind="stable")].astype(np.int64),
    )


def _sign_flip(sums: Float64Array, replicates: int, seed: int) -> float:
    observed = abs(sums.sum()) - ROUNDING * np.abs(sums).sum()
    random = np.random.default_rng(seed)
    extreme = 0
    for size in _parts(len(sums), replicates):
        signs = random.integers(0, 2, (size, len(sums)), dtype=np.int8) * 2.0 - 1
        extreme += int(np.count_nonzero(np.abs(signs @ sums) >= observed))
    return (1 + extreme) / (1 + replicates)


def _clusters(
    values: npt.ArrayLike, identities: npt.ArrayLike | None, level: float, replicates: int
) -> tuple[Float64Array, Float64Array]:
    """Sum and number of the values (C,) of what is drawn as one: a query, or an identity."""
    column = np.asarray(values, np.float64)
    if column.ndim != 1:
        raise DataError(f"interval: expected one value a query, (Q,), got shape {column.shape}")
    if not 0 < level < 1 or replicates < 1:
        raise DataError(f"interval: expected a level between 0 and 1 and replicates >= 1, got {level} and {replicates}")
    known = ~np.isnan(column)
    if not known.any():
        raise DataError(f"interval: none of the {len(column)} queries has a value; nothing to average")
    if identities is None:
        return column[known], np.ones(np.count_nonzero(known))
    labels = check_labels("identities", identities, len(column))[known]
    _, codes = np.unique(labels, return_inverse=True)
    sums, counts = (np.bincount(codes.reshape(-1), weights) for weights in (column[known], np.ones(len(labels))))
    return sums.astype(np.float64), counts.astype(np.float64)


def _draws(count: int, replicates: int, seed: int) -> Iterator[IntArray]:
    """Rows of ``count`` positions drawn with replacement; ``replicates`` rows in all, some at a time."""
    random = np.random.default_rng(seed)
    for size in _parts(count, replicates):
        yield random.integers(0, count, (size, count))


def bootstrap_weights(count: int, replicates: int, seed: int) -> Iterator[Float64Array]:
    """How often each of ``count`` clusters is drawn: (R, count) float64, ``replicates`` rows in all, some at a time."""
    for drawn in _draws(count, replicates, seed):
        cells = np.arange(len(drawn))[:, None] * count + drawn
        yield np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _parts(count: int, replicates: int) -> Iterator[int]:
    at_once = max(1, DRAWN_AT_ONCE // count)
    yield from (min(at_once, replicates - done) for done in range(0, replicates, at_once))
