"""Cohort statistics: how similar a vector is to its nearest crops of each camera of a gallery.

Score normalization (:mod:`reid.retrieval.score_normalization`) compares a score with the scores that the same vector
has with the crops of a camera anyway.  For each vector and each camera, this module measures the mean and the standard
deviation of the k largest similarities to a cohort: crops of that camera, the crop itself left out.  The cohort of a
large camera is bounded, so measuring stays linear in the number of rows.

A camera is named together with the category of its crops, as "person/door", because people and vehicles never stand in
one cohort.  "person/" is the pool of all cameras; it stands for an unknown camera.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, unknown_name
from reid.records import FloatArray, IntArray
from reid.retrieval.cohort_rows import (
    COHORT_LIMIT,
    BoolArray,
    Cohort,
    CohortRows,
    HashArray,
    LabelArray,
    cohort_of,
    inner_products,
    pool_of,
)

FEWEST = 32  # crops of a camera; the statistics of fewer say more about these few crops than about the camera
FEWEST_OF_SMALL = 8  # crops of a camera where every camera has fewer than that
ROWS_AT_ONCE = 256
MARGIN = np.float32(1e-5)  # above the rounding error of a float32 inner product of unit vectors
FEWEST_OF_CSLS, MOST_OF_CSLS, CROPS_OF_ONE = 3, 10, 24  # one neighbour for each 24 crops of a camera
COHORT_SHARE, FEWEST_NEIGHBOURS, MOST_NEIGHBOURS, STEP_OF_NEIGHBOURS = 6, 64, 256, 32  # of the s-norm


def csls_neighbours(crops: int) -> int:
    """Return how many neighbours CSLS averages in a camera of so many crops: a 24th of them, at least 3, at most 10.

    Example:
        >>> [csls_neighbours(crops) for crops in (1, 30, 120, 360)]
        [1, 3, 5, 10]
    """
    return min(max(crops // CROPS_OF_ONE, FEWEST_OF_CSLS), MOST_OF_CSLS, crops)


def snorm_neighbours(crops: int) -> int:
    """Return the size of the adaptive cohort of the s-norm: a sixth of the crops, at least 64 and at most 256.

    It grows in steps of 32, so that a few more crops rarely change it.

    Example:
        >>> snorm_neighbours(592), snorm_neighbours(40)
        (96, 40)
    """
    share = crops // COHORT_SHARE // STEP_OF_NEIGHBOURS * STEP_OF_NEIGHBOURS
    wished = min(max(share, FEWEST_NEIGHBOURS), MOST_NEIGHBOURS)
    return min(wished, crops)


NEIGHBOURS: dict[str, Callable[[int], int]] = {"csls": csls_neighbours, "snorm": snorm_neighbours}
"""How many of the nearest crops of a camera count, by the method and the number of crops of the camera."""


@dataclass(frozen=True, eq=False)
class CohortStatistics:
    """How similar N vectors are to their nearest crops of each of C cameras.

    ``mean`` and ``deviation`` (N, C) float32 are those of the ``k`` largest similarities to the cohort of a camera,
    ``lowest`` (N, C) is the smallest of them, -inf where fewer than ``k`` crops show another image.  Mean and deviation
    are NaN where a vector has no other crop to be compared with, and for cameras of another category.

    Args:
        method: What the statistics are for, a key of ``NEIGHBOURS``.
        cameras: The C names, "<category>/<camera>", and "<category>/" for the pool of all cameras of a category.
        mean: (N, C) float32.
        deviation: (N, C) float32.
        lowest: (N, C) float32.
        counts: (C,) int64, the crops in the cohort of each camera.
        k: (C,) int64, how many of them count for a vector.

    Example:
        >>> vectors = np.float32([[1, 0], [0, 1], [0.6, 0.8]])
        >>> rows = CohortRows.of_cameras(["door", "hall", "hall"], vectors)
        >>> statistics = measure_cohorts(rows, rows, "csls")
        >>> statistics.cameras, statistics.k.tolist()
        (('/', '/door', '/hall'), [3, 1, 2])
        >>> round(float(statistics.mean[0, 2]), 4)
        0.3
    """

    method: str
    cameras: tuple[str, ...]
    mean: FloatArray
    deviation: FloatArray
    lowest: FloatArray
    counts: IntArray
    k: IntArray

    def __len__(self) -> int:
        return len(self.mean)

    def select(self, rows: IntArray | BoolArray) -> CohortStatistics:
        """Return the statistics of some of the vectors; the cohort stays as it is."""
        return replace(self, mean=self.mean[rows], deviation=self.deviation[rows], lowest=self.lowest[rows])

    @classmethod
    def joined(cls, *parts: CohortStatistics) -> CohortStatistics:
        """Return the statistics of all parts, one after the other; all are for the same cohort."""
        fields = ("mean", "deviation", "lowest")
        mean, deviation, lowest = (np.concatenate([getattr(part, name) for part in parts]) for name in fields)
        return replace(parts[0], mean=mean, deviation=deviation, lowest=lowest)

    def columns(self, cameras: Sequence[str] | LabelArray) -> IntArray:
        """Find the column that holds for each of some cameras.

        A camera with fewer than ``FEWEST`` crops, or without any, takes the pool of all cameras of its category.  Where
        all cameras of the category are that small, ``FEWEST_OF_SMALL`` crops are enough, because then the pool is not
        better.  Scores stay as they are where no camera has so many, or no camera is known and the pool is small.

        Returns:
            (M,) int64; -1 where nothing holds.
        """
        names, inverse = np.unique(np.asarray(cameras, dtype=np.str_), return_inverse=True)
        found = [self._column(name) for name in names.tolist()]
        return np.array(found, np.int64).reshape(-1)[inverse.reshape(-1)]

    def _column(self, camera: str) -> int:
        pool = pool_of(camera)
        sizes = {
            name: count for name, count in zip(self.cameras, self.counts.tolist(), strict=True) if pool_of(name) == pool
        }
        pooled, largest = sizes.pop(pool, 0), max(sizes.values(), default=0)
        fewest = FEWEST if largest >= FEWEST else FEWEST_OF_SMALL
        if camera in sizes and sizes[camera] >= fewest:
            return self.cameras.index(camera)
        enough = largest >= fewest if sizes else pooled >= FEWEST
        return self.cameras.index(pool) if enough else -1

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return everything as arrays, for a file."""
        return {
            "method": np.array(self.method),
            "cameras": np.array(self.cameras, dtype=np.str_),
            "mean": self.mean,
            "deviation": self.deviation,
            "lowest": self.lowest,
            "counts": self.counts,
            "k": self.k,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> CohortStatistics:
        """Return the statistics that :meth:`to_arrays` returned as arrays.

        Raises:
            DataError: An array is missing, or the shapes do not fit.
        """
        try:
            tables = [np.asarray(arrays[name], np.float32) for name in ("mean", "deviation", "lowest")]
            counts, k = (np.asarray(arrays[name], np.int64) for name in ("counts", "k"))
            cameras = tuple(str(name) for name in arrays["cameras"].tolist())
            method = str(arrays["method"])
        except KeyError as error:
            raise DataError(f"cohort statistics: expected an array {error}; measure them again") from None
        shape = (len(tables[0]), len(cameras))
        if method not in NEIGHBOURS:
            raise DataError(unknown_name("score normalization", method, NEIGHBOURS))
        if any(table.shape != shape for table in tables) or any(part.shape != shape[1:] for part in (counts, k)):
            raise DataError(f"cohort statistics: the arrays do not fit {len(cameras)} cameras; measure them again")
        return cls(method, cameras, tables[0], tables[1], tables[2], counts, k)


def measure_cohorts(
    rows: CohortRows, gallery: CohortRows | Cohort, method: str, *, k: int | None = None, limit: int = COHORT_LIMIT
) -> CohortStatistics:
    """Measure how similar vectors are to their nearest crops of each camera of a gallery.

    Args:
        rows: The vectors, N of them: those of the gallery itself, or queries.
        gallery: The rows that the cohorts are chosen from, or the chosen cohort.
        method: What the statistics are for, a key of ``NEIGHBOURS``.
        k: How many of the nearest crops of a camera count; by default, ``NEIGHBOURS`` says it.
        limit: The most crops of a camera that are compared, see :func:`reid.retrieval.cohort_rows.cohort_of`.

    Returns:
        The statistics (N, C).  A block of rows is held at a time.

    Raises:
        DataError: The vectors have different lengths.
    """
    if method not in NEIGHBOURS:
        raise DataError(unknown_name("score normalization", method, NEIGHBOURS))
    cohort = gallery if isinstance(gallery, Cohort) else cohort_of(gallery, limit)
    for _, part in (pair for parts in cohort.parts.values() for pair in parts):
        if part.vectors.shape[1] != rows.vectors.shape[1]:
            raise DataError(f"cohort: vectors of length {rows.vectors.shape[1]} and {part.vectors.shape[1]} differ")
    statistics = unmeasured(len(rows.vectors), cohort, method, k)
    measure_rows(statistics, rows, np.arange(len(rows.vectors)), cohort)
    return statistics


def unmeasured(rows: int, cohort: Cohort, method: str, k: int | None = None) -> CohortStatistics:
    """Return statistics (N, C) of so many rows in which nothing is measured yet: NaN."""
    cameras, counts, ks = cohort_sizes(cohort, method, k)
    tables = [np.full((rows, len(cameras)), np.nan, np.float32) for _ in range(3)]
    return CohortStatistics(method, cameras, tables[0], tables[1], tables[2], counts, ks)


def measure_toward(statistics: CohortStatistics, rows: CohortRows, cohort: Cohort, camera: str) -> None:
    """Measure all rows of the category of a camera toward this camera, or toward a pool, and write them."""
    own = np.flatnonzero(np.char.startswith(rows.cameras, pool_of(camera)))
    if camera == pool_of(camera):
        _measure_category(statistics, rows, own, camera, cohort.parts[camera])
    else:
        measure_camera(statistics, rows, own, cohort, camera)


def cohort_sizes(cohort: Cohort, method: str, k: int | None = None) -> tuple[tuple[str, ...], IntArray, IntArray]:
    """Return the names of the cameras, the sizes of their cohorts, and how many crops count, of a cohort."""
    cameras = tuple(cohort.members)
    counts = np.array([len(members) for members in cohort.members.values()], np.int64)
    wished = [min(k, count) if k else NEIGHBOURS[method](count) for count in counts.tolist()]
    return cameras, counts, np.array(wished, np.int64)


def measure_rows(statistics: CohortStatistics, rows: CohortRows, chosen: IntArray, cohort: Cohort) -> None:
    """Measure the rows ``chosen`` (M,) and write them into ``statistics``, whose cameras are those of the cohort."""
    for pool, parts in cohort.parts.items():
        own = chosen[np.char.startswith(rows.cameras[chosen], pool)]
        _measure_category(statistics, rows, own, pool, parts)


def measure_camera(
    statistics: CohortStatistics, rows: CohortRows, chosen: IntArray, cohort: Cohort, camera: str
) -> None:
    """Measure the rows ``chosen`` (M,) toward one camera, which is not a pool, and write them into ``statistics``."""
    column = statistics.cameras.index(camera)
    part, k = dict(cohort.parts[pool_of(camera)])[camera], int(statistics.k[column])
    for start in range(0, len(chosen), ROWS_AT_ONCE):
        block = chosen[start : start + ROWS_AT_ONCE]
        _fill(statistics, block, column, _nearest(rows.vectors[block], rows.images[block], part, k), k)


def _measure_category(
    statistics: CohortStatistics,
    rows: CohortRows,
    own: IntArray,
    pool: str,
    parts: Sequence[tuple[str, CohortRows]],
) -> None:
    """Fill the rows ``own`` (M,) and the columns of one category; the pool is joined from what its cameras find."""
    column = {name: position for position, name in enumerate(statistics.cameras)}
    pooled = int(statistics.k[column[pool]])
    for start in range(0, len(own), ROWS_AT_ONCE):
        block = own[start : start + ROWS_AT_ONCE]
        vectors, images = rows.vectors[block], rows.images[block]
        found = []
        for name, part in parts:
            k = int(statistics.k[column[name]]) if name != pool else 0
            nearest = _nearest(vectors, images, part, max(k, pooled))
            found.append(nearest)
            if k:
                _fill(statistics, block, column[name], nearest[:, :k], k)
        together = -np.sort(-np.concatenate(found, axis=1), axis=1)
        _fill(statistics, block, column[pool], together[:, :pooled], pooled)


def _nearest(vectors: FloatArray, images: HashArray, part: CohortRows, k: int) -> FloatArray:
    """Return the k largest similarities (B, K) to ``part``, descending; -inf where the image is the same."""
    scores = inner_products(vectors, part.vectors)
    same = images[:, None] == part.images[None, :]
    if same.any():
        scores[same] = -np.inf
    if k < scores.shape[1]:
        scores = np.partition(scores, -k, axis=1)[:, -k:]
    descending: FloatArray = -np.sort(-scores, axis=1)
    return descending


def _fill(statistics: CohortStatistics, rows: IntArray, column: int, nearest: FloatArray, k: int) -> None:
    """Write mean, deviation and smallest of ``nearest`` (B, K), of which -inf counts for nothing."""
    valid = nearest > -np.inf
    counted = valid.sum(axis=1)
    scores = np.where(valid, nearest, 0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = scores.sum(axis=1) / counted
        square = np.where(valid, (scores - mean[:, None]) ** 2, 0).sum(axis=1) / counted
    statistics.mean[rows, column] = mean
    statistics.deviation[rows, column] = np.sqrt(square)
    statistics.lowest[rows, column] = nearest[:, -1] if nearest.shape[1] == k else -np.inf


def with_other_cameras(gallery: CohortRows, others: CohortRows | None) -> CohortRows:
    """Add crops of those cameras of which a gallery has too few for a cohort.

    Args:
        gallery: The rows of the gallery; a camera with ``FEWEST`` rows or more keeps to its own.
        others: Crops of the cameras of the site; None for none.

    Example:
        >>> door = CohortRows.of_cameras(["door"] * FEWEST, np.eye(FEWEST, dtype=np.float32))
        >>> yard = CohortRows.of_cameras(["door", "yard"], np.eye(2, FEWEST, dtype=np.float32))
        >>> sorted(set(with_other_cameras(door, yard).cameras.tolist())), len(with_other_cameras(door, yard).cameras)
        (['/door', '/yard'], 33)
    """
    if others is None:
        return gallery
    names, counts = np.unique(gallery.cameras, return_counts=True)
    enough = names[counts >= FEWEST]
    return CohortRows.joined(gallery, others.select(~np.isin(others.cameras, enough)))
