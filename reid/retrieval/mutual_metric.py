"""A metric learned from mutual neighbours of two cameras, without labels.

Two crops of different cameras that are each other's nearest neighbours mostly show one identity. The directions in
which such pairs differ are the directions in which an identity changes from camera to camera. The metric shrinks them,
as XQDA and KISSME do with labelled pairs, so that what is left separates identities.

It helps where identities are shown by several cameras, also where an identity has a single crop in each of them. It
needs at least two cameras and enough pairs; otherwise :func:`mutual_neighbour_metric` declines and says why.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.camera_neighbours import NOBODY, Similarity, check_cameras, neighbours_in_each_camera

SHRINK = 0.3  # 0.3 to 0.6 are about equally good
FEWEST_PAIRS = 32  # of crops; fewer say more about these crops than about the cameras
PAIRS_AT_ONCE = 4096


@dataclass(frozen=True)
class Declined:
    """Why a method that depends on its data is not used.

    Args:
        reason: One line.
    """

    reason: str


@dataclass(frozen=True, eq=False)
class MutualMetric:
    """A linear map of vectors that shrinks the differences between mutual neighbours.

    Args:
        matrix: (D, D) float64, symmetric.
        pairs: The number of pairs of crops that it was learned from.
        k: How many neighbours in each camera counted.
        shrink: The share of the mean variance that was added to every direction.
    """

    matrix: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    pairs: int
    k: int
    shrink: float

    @property
    def stamp(self) -> str:
        """The method and its parameters, to be reported with every number computed with it."""
        return f"mutual-neighbour metric (k {self.k}, shrink {self.shrink:g}, {self.pairs} pairs)"

    def apply(self, vectors: FloatArray) -> FloatArray:
        """Map vectors (N, D) float32; the result (N, D) float32 has unit length.

        Raises:
            DataError: The vectors have another length, or one of them is zero.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.matrix):
            raise DataError(f"mutual-neighbour metric: expected vectors (N, {len(self.matrix)}), got {vectors.shape}")
        mapped = vectors @ self.matrix
        lengths = np.linalg.norm(mapped, axis=1, keepdims=True)
        if not lengths.all():
            raise DataError(
                f"mutual-neighbour metric: row {int(np.argmin(lengths))} is zero; give vectors of unit length"
            )
        result: FloatArray = (mapped / lengths).astype(np.float32)
        return result


def mutual_neighbour_metric(
    vectors: FloatArray, similarity: Similarity, cameras: IntArray, *, k: int, shrink: float = SHRINK
) -> MutualMetric | Declined:
    """Learn the metric from pairs of crops that are among each other's k nearest of the other's camera.

    With S = mean of (f_i - f_j)(f_i - f_j)^T / 2 over the pairs, shrunk to (1 - r) S + r trace(S)/D I, a vector f is
    mapped to the direction of S^(-1/2) f.

    Args:
        vectors: (N, D) float32 of unit length.
        similarity: (start, stop) -> the similarities (stop - start, N) float32 that choose the pairs, best normalized
            for each pair of cameras (:func:`~reid.retrieval.score_normalization.normalize_among`).
        cameras: (N,) int64, the camera of each crop as an index.
        k: 1 where an identity has one crop in each camera, 3 where it has several.
        shrink: r in 0..1; 0 takes S as it is, which needs many more pairs than D.

    Returns:
        The metric, or why it is not used.

    Raises:
        DataError: ``k`` or ``shrink`` is out of range, or a shape is wrong.

    Example:
        >>> from reid.retrieval.camera_neighbours import cosine_blocks
        >>> random = np.random.default_rng(0)
        >>> identity, shift = random.standard_normal((2, 50, 8)), np.diag([3.0, 0, 0, 0, 0, 0, 0, 0])
        >>> vectors = np.concatenate([identity[0], identity[0] + identity[1] @ shift / 9])
        >>> vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        >>> metric = mutual_neighbour_metric(vectors, cosine_blocks(vectors), np.repeat([0, 1], 50), k=1)
        >>> int(np.argmin(np.diag(metric.matrix)))
        0
    """
    check_cameras(cameras)
    if k < 1 or not 0 <= shrink <= 1:
        raise DataError(f"mutual-neighbour metric: expected k of at least 1 and shrink in 0..1, got {k} and {shrink}")
    if vectors.ndim != 2 or len(vectors) != len(cameras):
        raise DataError(f"mutual-neighbour metric: expected vectors ({len(cameras)}, D), got {vectors.shape}")
    if len(np.unique(cameras)) < 2:
        return Declined("mutual-neighbour metric: not used, because all crops are of one camera")
    first, second = mutual_pairs(similarity, cameras, k)
    if len(first) < FEWEST_PAIRS:
        return Declined(
            f"mutual-neighbour metric: not used, because only {len(first)} pairs of crops are each other's neighbours"
            f" across cameras; it needs {FEWEST_PAIRS}"
        )
    scatter = _half_mean_square(vectors, first, second)
    size = len(scatter)
    scatter = (1 - shrink) * scatter + shrink * np.trace(scatter) / size * np.eye(size)
    values, directions = np.linalg.eigh(scatter)
    if values[0] <= values[-1] * np.finfo(np.float32).eps:
        return Declined(
            f"mutual-neighbour metric: not used, because {len(first)} pairs leave directions without any difference;"
            " use a larger shrink"
        )
    return MutualMetric((directions / np.sqrt(values)) @ directions.T, len(first), k, shrink)


def mutual_pairs(similarity: Similarity, cameras: IntArray, k: int) -> tuple[IntArray, IntArray]:
    """Find the pairs of crops of two cameras that are among each other's k nearest of the other's camera.

    Args:
        similarity: The similarities of N crops in blocks of rows.
        cameras: (N,) int64, the camera of each crop as an index.
        k: The length of the lists.

    Returns:
        The lower and the higher row of each pair, both (P,) int64, sorted.

    Example:
        >>> from reid.retrieval.camera_neighbours import cosine_blocks
        >>> vectors = np.float32([[1, 0], [0, 1], [0.8, 0.6], [0.6, 0.8]])
        >>> [rows.tolist() for rows in mutual_pairs(cosine_blocks(vectors), np.array([0, 0, 1, 1]), k=1)]
        [[0, 1], [2, 3]]
    """
    rows, _ = neighbours_in_each_camera(similarity, cameras, k)
    count = len(rows)
    row, camera, rank = np.nonzero(rows != NOBODY)
    column = rows[row, camera, rank]
    across = cameras[row] != cameras[column]
    row, column = row[across], column[across]
    keys = row * count + column
    mutual = (row < column) & np.isin(keys, column * count + row)
    first, second = np.divmod(np.sort(keys[mutual]), count)
    return first, second


def _half_mean_square(
    vectors: FloatArray, first: IntArray, second: IntArray
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return (D, D): half the mean of the outer square of the differences of the pairs (P,)."""
    total = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        difference = vectors[first[part]].astype(np.float64) - vectors[second[part]]
        total += difference.T @ difference
    return total / (2 * len(first))
