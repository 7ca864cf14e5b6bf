"""How certain a score is, and whether one run is really better than another on the same queries.

Queries of one identity are alike, so resampling single queries gives intervals that are too narrow where an identity
has many queries.  If identities are given, whole identities are drawn instead.  All random numbers come from ``seed``.
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
    """An estimate ``value`` and its percentile bootstrap interval ``low`` to ``high`` at ``level`` (0.95: 95 %)."""

    value: float
    low: float
    high: float
    level: float = LEVEL


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """The second run minus the first on the same queries, in one value of each query.

    Attributes:
        difference: The mean difference and its interval.
        p_value: How often a difference at least this large, of either sign, appears when the runs are exchanged at
            random query by query (or identity by identity).
        differences: Of each query, (Q,) float64, NaN for unmatched queries.
        wins: How many queries the second run answers better.
        losses: How many queries it answers worse.
        draws: How many queries it answers equally well.
        order: The matched queries, int64, from the second run's greatest win to its greatest loss.
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
    """Compute the percentile bootstrap interval (Efron 1979) of a mean.

    Args:
        values: One value of each query, (Q,) floats; NaN are left out.
        identities: Labels (Q,), strings or integers.  With them, identities are drawn instead of queries; the mean
            stays that over queries.
        level: The level of the interval.
        replicates: How often to resample.
        seed: Seed of the draws.

    Raises:
        DataError: No value, a wrong shape, or a level or number that cannot be.

    Example:
        >>> bootstrap_mean([0.5, 0.5, 0.5])
        Interval(value=0.5, low=0.5, high=0.5, level=0.95)
    """
    sums, counts = _sum_clusters(values, identities, level, replicates)
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
    """Compute the intervals of "mAP", "mINP" and "rank1".

    Queries are drawn, or with ``query_identities`` (Q,) identities.  The other arguments are those of
    :func:`bootstrap_mean`.
    """
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
    """Compare one value of each query of two runs, such as ``average_precision`` or ``rank1`` of their metrics.

    The p-value is that of the sign-flip test (Fisher's paired randomization test); it is never below
    1 / (replicates + 1).

    Args:
        first: Values (Q,) of the first run.
        second: Values (Q,) of the second run; row i of both is the same query.
        identities: Labels (Q,).  With them, identities are drawn and exchanged instead of queries.
        level: The level of the interval.
        replicates: How often to resample.
        seed: Seed of the draws.

    Raises:
        DataError: The runs differ in their queries.

    Example:
        >>> change = paired_difference([0.5, 0.25, 0.75], [0.75, 0.5, 1.0])
        >>> change.difference.value, change.wins, change.losses
        (0.25, 3, 0)
    """
    before, after = (np.asarray(values, np.float64) for values in (first, second))
    if before.shape != after.shape or before.ndim != 1:
        raise DataError(f"compare: expected one value a query from both runs, got {before.shape} and {after.shape}")
    if np.any(np.isnan(before) != np.isnan(after)):
        where = int(np.argmax(np.isnan(before) != np.isnan(after)))
        raise DataError(f"compare: query {where} has a right answer in one run only; the runs differ in their data")
    differences = after - before
    interval = bootstrap_mean(differences, identities, level=level, replicates=replicates, seed=seed)
    sums, _ = _sum_clusters(differences, identities, level, replicates)
    known = np.flatnonzero(~np.isnan(differences))
    return PairedDifference(
        interval,
        _sign_flip_p_value(sums, replicates, seed),
        differences,
        int(np.count_nonzero(differences[known] > 0)),
        int(np.count_nonzero(differences[known] < 0)),
        int(np.count_nonzero(differences[known] == 0)),
        known[np.argsort(-differences[known], kind="stable")].astype(np.int64),
    )


def _sign_flip_p_value(sums: Float64Array, replicates: int, seed: int) -> float:
    observed = abs(sums.sum()) - ROUNDING * np.abs(sums).sum()
    random = np.random.default_rng(seed)
    extreme = 0
    for size in _batches(len(sums), replicates):
        signs = random.integers(0, 2, (size, len(sums)), dtype=np.int8) * 2.0 - 1
        extreme += int(np.count_nonzero(np.abs(signs @ sums) >= observed))
    return (1 + extreme) / (1 + replicates)


def _sum_clusters(
    values: npt.ArrayLike, identities: npt.ArrayLike | None, level: float, replicates: int
) -> tuple[Float64Array, Float64Array]:
    """Compute the sum and the number of the values (C,) of each cluster that is drawn: a query, or an identity."""
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
    """Draw ``replicates`` rows of ``count`` positions with replacement, some rows at a time."""
    random = np.random.default_rng(seed)
    for size in _batches(count, replicates):
        yield random.integers(0, count, (size, count))


def bootstrap_weights(count: int, replicates: int, seed: int) -> Iterator[Float64Array]:
    """Count how often each of ``count`` clusters is drawn in ``replicates`` draws.

    Yields:
        Counts (R, count) float64, some rows at a time.
    """
    for drawn in _draws(count, replicates, seed):
        cells = np.arange(len(drawn))[:, None] * count + drawn
        yield np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _batches(count: int, replicates: int) -> Iterator[int]:
    at_once = max(1, DRAWN_AT_ONCE // count)
    yield from (min(at_once, replicates - done) for done in range(0, replicates, at_once))
