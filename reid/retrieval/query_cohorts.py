"""The cohort statistics of queries for CSLS, the same to the last bit for a query alone and among others.

Rough scores, of codes or of a matrix product, choose the crops of a camera that may be among the nearest.  The scores
of these are computed pair by pair, so that neither the other queries nor the way in which the crops were chosen change
a bit of the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from reid.records import FloatArray, IntArray
from reid.retrieval.cohort_rows import BoolArray, Cohort, CohortRows, HashArray, inner_products
from reid.retrieval.cohorts import CohortStatistics, unmeasured
from reid.retrieval.stores.byte_products import ByteSums, has_byte_products
from reid.retrieval.stores.code_search import FEW_QUERIES
from reid.retrieval.stores.products import Float32Products, Float64Array, lower_bound
from reid.retrieval.stores.row_codes import ByteArray, CodedQueries, RowCodes

METHOD = "csls"  # the s-norm averages so many crops that choosing them first saves nothing
QUERIES_AT_ONCE = 256
CROPS_AT_ONCE = 16384  # of several cameras that are encoded together
SCANNED_PER_RANK = 20  # crops that a scan keeps for each neighbour, at first


@dataclass(frozen=True, eq=False)
class CohortCodes:
    """The crops of some cameras of one category in whole numbers.

    Attributes:
        codes: Their codes, those of one camera after those of another.
        sums: The same, for many queries.
        starts: Where the crops of each camera start, by its name; those of unknown cameras have the name of the pool.
    """

    codes: RowCodes
    sums: ByteSums
    starts: Mapping[str, int]

    @classmethod
    def of(cls, parts: Sequence[tuple[str, CohortRows]]) -> CohortCodes:
        """Encode the crops (N,) of some cameras."""
        codes = RowCodes.of(np.concatenate([part.vectors for _, part in parts]))
        ends = np.cumsum([len(part.vectors) for _, part in parts]).tolist()
        starts = {name: end - len(part.vectors) for (name, part), end in zip(parts, ends, strict=True)}
        return cls(codes, ByteSums(codes.codes), starts)


def encode_cohort(cohort: Cohort) -> list[CohortCodes]:
    """Encode the crops of every camera, some cameras at a time."""
    found = []
    for parts in cohort.parts.values():
        together: list[tuple[str, CohortRows]] = []
        for name, part in parts:
            if together and sum(len(one.vectors) for _, one in together) + len(part.vectors) > CROPS_AT_ONCE:
                found.append(CohortCodes.of(together))
                together = []
            together.append((name, part))
        found.append(CohortCodes.of(together))
    return found


@dataclass(frozen=True, eq=False)
class NearCrops:
    """Crops of a cohort that are near to queries, with their similarities.

    Attributes:
        query: (E,) int64.
        row: (E,) int64, the row of the gallery that the cohort was chosen from.
        score: (E,) float32.
    """

    query: IntArray
    row: IntArray
    score: FloatArray


def measure_queries(
    queries: CohortRows, cohort: Cohort, codes: Sequence[CohortCodes] = (), near: list[NearCrops] | None = None
) -> CohortStatistics:
    """Measure the means of CSLS of queries, equal to :func:`reid.retrieval.cohorts.measure_cohorts` up to rounding.

    Args:
        queries: The queries, Q of them.
        cohort: The crops of each camera.
        codes: All of them in whole numbers, which are faster; none compares vectors.
        near: Takes the crops of known cameras that are among the nearest of a camera.

    Returns:
        The statistics (Q, C); only the means are measured, the others are NaN.

    Example:
        >>> from reid.retrieval.cohort_rows import cohort_of
        >>> vectors = np.float32([[1, 0], [0.6, 0.8], [0, 1], [1, 0]])
        >>> rows = CohortRows.of_cameras(["door", "door", "hall", "yard"], vectors)
        >>> found = measure_queries(rows.select(np.array([3])), cohort_of(rows.select(np.arange(3))))
        >>> dict(zip(found.cameras, np.round(found.mean[0].astype(float), 3).tolist()))
        {'/': 0.533, '/door': 0.8, '/hall': 0.0}
    """
    statistics = unmeasured(len(queries.vectors), cohort, METHOD)
    column = {name: position for position, name in enumerate(statistics.cameras)}
    for pool, parts in cohort.parts.items():
        own = np.flatnonzero(np.char.startswith(queries.cameras, pool))
        pooled = int(statistics.k[column[pool]])
        wanted = [(name, part, int(statistics.k[column[name]]) if name != pool else 0) for name, part in parts]
        for start in range(0, len(own), QUERIES_AT_ONCE):
            block = own[start : start + QUERIES_AT_ONCE]
            asked, found, choosers = queries.select(block), [], _choosers(queries.vectors[block], codes)
            for name, part, k in wanted:
                chooser = choosers.get(name, _ByVectors(asked.vectors, part))
                nearest, pairs = _nearest(asked, part, cohort.images[name], max(k, pooled), chooser)
                found.append(nearest)
                if near is not None and k:
                    near.append(NearCrops(block[pairs.query], cohort.members[name][pairs.row], pairs.score))
                if k:
                    statistics.mean[block, column[name]] = _means(nearest[:, :k])
            statistics.mean[block, column[pool]] = _means(_descending(np.concatenate(found, axis=1), pooled))
    return statistics


@dataclass(frozen=True, eq=False)
class _Near:
    """Queries (E,), which ascend, and crops (E,), with upper bounds of their similarities where they help."""

    query: IntArray
    crop: IntArray
    upper: FloatArray | None = None


class _Chooser(Protocol):
    """Chooses the crops of a camera that may be among the nearest of B queries."""

    def near(self, k: int, same: BoolArray | None) -> _Near:
        """Return at least the k nearest crops of each query that do not show the ``same`` image."""


@dataclass(frozen=True, eq=False)
class _ByVectors:
    """By a matrix product in float32."""

    queries: FloatArray
    part: CohortRows

    def near(self, k: int, same: BoolArray | None) -> _Near:
        """Return the crops whose upper bounds reach the k-th lower bound."""
        scores = inner_products(self.queries, self.part.vectors)
        if same is not None:
            scores[same] = -np.inf
        bounds = lower_bound(scores, k) - Float32Products(self.queries).errors
        return _Near(*_places(scores >= np.maximum(bounds, np.finfo(np.float32).min)[:, None]))


@dataclass(frozen=True, eq=False)
class _BySums:
    """By sums (B, N) of products of whole numbers."""

    sums: npt.NDArray[np.int32]
    coded: CodedQueries
    reach: Float64Array  # (B,), how far the sum of a nearer crop may be below that of another

    def near(self, k: int, same: BoolArray | None) -> _Near:
        """Return the crops whose upper bounds reach the k-th lower bound."""
        least = np.iinfo(np.int32).min
        if same is not None:
            self.sums[same] = least
        if self.sums.shape[1] < k:
            return _Near(*_places(self.sums > least))
        lowest = lower_bound(self.sums, k)
        limits = np.where(lowest > least, np.floor(lowest - self.reach), least)
        query, crop = _places(self.sums >= np.maximum(limits, least + 1).astype(np.int32)[:, None])
        scores = self.coded.scores(query, self.sums[query, crop])
        return _Near(query, crop, scores + (1.001 * self.coded.errors).astype(np.float32)[query])


@dataclass(frozen=True, eq=False)
class _ByScan:
    """By the codes of a camera, query by query."""

    coded: CodedQueries
    codes: ByteArray
    reach: Float64Array

    def near(self, k: int, same: BoolArray | None) -> _Near:
        """Return the crops whose upper bounds reach the k-th lower bound."""
        from reid.retrieval.faiss_index import largest_sums

        found = []
        for i, whole in enumerate(self.coded.whole):
            mask, n = None if same is None else ~same[i], SCANNED_PER_RANK * k
            while True:
                rows, sums = largest_sums(whole, self.codes, min(n, len(self.codes)), mask)
                bound = np.partition(sums, -k)[-k] - self.reach[i] if len(sums) >= k else -np.inf
                if n >= len(self.codes) or sums.min(initial=np.inf) < bound:
                    break
                n *= 4
            found.append(np.sort(rows[sums >= bound]))
        return _Near(np.repeat(np.arange(len(found)), [len(rows) for rows in found]), np.concatenate(found))


def _choosers(queries: FloatArray, codes: Sequence[CohortCodes]) -> dict[str, _Chooser]:
    """Return what chooses the crops of each camera for queries (B, D); none where vectors are compared as fast."""
    found: dict[str, _Chooser] = {}
    for part in codes if len(queries) <= FEW_QUERIES or has_byte_products() else ():
        coded = CodedQueries.of(queries, part.codes)
        reach = 2.01 * coded.errors / coded.units + 2
        ends = [*list(part.starts.values())[1:], len(part.codes.codes)]
        sums = None if len(queries) <= FEW_QUERIES else part.sums.of(coded)
        for (name, start), end in zip(part.starts.items(), ends, strict=True):
            if sums is None:
                found[name] = _ByScan(coded, part.codes.codes[start:end], reach)
            else:
                found[name] = _BySums(sums[:, start:end], coded, reach)
    return found


def _nearest(
    queries: CohortRows, part: CohortRows, images: HashArray, k: int, chooser: _Chooser
) -> tuple[FloatArray, NearCrops]:
    """Return the k largest similarities (B, K) to the crops of a camera, descending, and the crops that have them.

    Similarities are -inf where there are no more.

    The crop of a query itself does not count; ``images`` (N,) are those of the crops, sorted.
    """
    k, same = min(k, len(part.vectors)), None
    if is_one_there(queries.images, images):
        same = queries.images[:, None] == part.images
    near = chooser.near(k, same)
    scores = _close_scores(queries.vectors, part.vectors, near, k)
    nearest = _padded(len(queries.vectors), near.query, scores, k)
    are_nearest = scores >= nearest[near.query, -1]
    return nearest, NearCrops(near.query[are_nearest], near.crop[are_nearest], scores[are_nearest])


def _close_scores(queries: FloatArray, vectors: FloatArray, near: _Near, k: int) -> FloatArray:
    """Return the similarities (E,) in float32; -inf where they are surely not among the k largest of a query.

    The ``k`` crops of the largest upper bounds come first: they are the bound that most others do not reach.
    """
    from reid.retrieval.faiss_index import pair_products

    query, crop, upper = near.query, near.crop, near.upper
    if upper is None:
        return pair_products(queries, vectors, query, crop)
    is_first = upper >= _padded(len(queries), query, upper, k)[query, -1]
    scores = np.full(len(query), -np.inf, np.float32)
    scores[is_first] = pair_products(queries, vectors, query[is_first], crop[is_first])
    bounds = _padded(len(queries), query[is_first], scores[is_first], k)[:, -1] - Float32Products(queries).errors
    others = np.flatnonzero(~is_first & (upper >= bounds[query]))
    scores[others] = pair_products(queries, vectors, query[others], crop[others])
    return scores


def is_one_there(numbers: HashArray, known: HashArray) -> bool:
    """Return whether one of some numbers (B,) is among known ones (N,), which are sorted.

    Example:
        >>> known = np.array([3, 7], np.uint64)
        >>> is_one_there(np.array([9, 7], np.uint64), known), is_one_there(np.array([4], np.uint64), known)
        (True, False)
    """
    if not len(known):
        return False
    return bool((known[np.minimum(np.searchsorted(known, numbers), len(known) - 1)] == numbers).any())


def _places(reaches: BoolArray) -> tuple[IntArray, IntArray]:
    """Return the rows (E,), which ascend, and the columns (E,) that are true."""
    return np.divmod(np.flatnonzero(reaches), reaches.shape[1])


def _padded(queries: int, query: IntArray, scores: FloatArray, k: int) -> FloatArray:
    """Return the k largest scores (Q, K) of queries (E,), which ascend, descending; -inf where there are fewer."""
    counts = np.bincount(query, minlength=queries)
    table = np.full((queries, max(k, int(counts.max(initial=0)))), -np.inf, np.float32)
    table[query, np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)] = scores
    return _descending(table, k)


def _descending(scores: FloatArray, k: int) -> FloatArray:
    """Return the k largest of scores (B, N), descending; fewer where N is smaller."""
    if k < scores.shape[1]:
        scores = np.partition(scores, -k, axis=1)[:, -k:]
    descending: FloatArray = -np.sort(-scores, axis=1)
    return descending


def _means(nearest: FloatArray) -> Float64Array:
    """Return the means (B,) of similarities (B, K), of which -inf counts for nothing; NaN where all are."""
    valid = nearest > -np.inf
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Float64Array = np.where(valid, nearest, 0).astype(np.float64).sum(axis=1) / valid.sum(axis=1)
    return means
