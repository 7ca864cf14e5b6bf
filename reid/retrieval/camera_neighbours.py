"""The nearest crops of each crop, listed separately for its own camera and for other cameras.

The crops of one camera look alike, so that a list over all cameras shows mostly its own camera. Lists for each camera
are balanced. The scores come in blocks of rows, from :func:`cosine_blocks` or normalized for each pair of cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.neighbours import lower_bound, pairs_above

BLOCK_BYTES = 64 * 2**20
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512  # rows
NOBODY = -1  # fills the lists of crops that have fewer neighbours

Similarity = Callable[[int, int], FloatArray]
"""(start, stop) -> similarities (stop - start, N) float32 of these rows to all N rows; a larger one means more similar.

The caller may overwrite the array, and the next call may use it again."""


@dataclass(frozen=True)
class CameraNeighbours:
    """The nearest crops of each of N crops in its own camera and in the other cameras.

    Args:
        own: (N, K) int64, nearest first; the first one is the crop itself, and -1 stands for nobody.
        own_scores: (N, K) float32, their similarities; -inf for nobody.
        others: (N, L) int64, nearest first; -1 stands for nobody.
        other_scores: (N, L) float32; -inf for nobody.
    """

    own: IntArray
    own_scores: FloatArray
    others: IntArray
    other_scores: FloatArray


def cosine_blocks(vectors: FloatArray) -> Similarity:
    """Return the inner products of unit vectors (N, D) float32 in blocks of rows.

    Example:
        >>> cosine_blocks(np.float32([[1, 0], [0, 1], [0, 1]]))(1, 3).tolist()
        [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    return lambda start, stop: np.matmul(vectors[start:stop], vectors.T)


def own_and_other_neighbours(similarity: Similarity, cameras: IntArray, own: int, others: int) -> CameraNeighbours:
    """Find the nearest crops of each crop in its own camera, and in all other cameras together.

    A crop is its own first neighbour, whatever its similarity to itself is. Of equal similarities the lower row is
    nearer.

    Args:
        similarity: The similarities of N crops in blocks of rows.
        cameras: (N,) the camera of each crop.
        own: The length of the lists of the own camera, at least 1; the crop itself counts.
        others: The length of the lists of the other cameras; 0 for none.

    Returns:
        The lists, shorter than asked where no crop has so many neighbours.

    Raises:
        DataError: ``cameras`` or the similarities have a wrong shape, or a similarity is not finite.

    Example:
        >>> vectors = np.float32([[1, 0], [0.6, 0.8], [0.8, 0.6], [0, 1]])
        >>> found = own_and_other_neighbours(cosine_blocks(vectors), np.array([0, 0, 1, 1]), own=2, others=1)
        >>> found.own.tolist(), found.others.tolist()
        ([[0, 1], [1, 0], [2, 3], [3, 2]], [[2], [2], [1], [1]])
    """
    check_cameras(cameras)
    count, sizes = len(cameras), np.unique(cameras, return_counts=True)[1]
    own_rows, own_scores = _empty_lists(count, min(own, int(sizes.max())))
    other_rows, other_scores = _empty_lists(count, min(others, count - int(sizes.min())))
    for start, scores in score_blocks(similarity, count):
        rows = np.arange(start, start + len(scores))
        itself = scores[rows - start, rows].copy()
        scores[rows - start, rows] = np.inf
        for camera in np.unique(cameras[rows]):
            here, columns = rows[cameras[rows] == camera], np.flatnonzero(cameras == camera)
            part = scores[here - start]
            _fill(own_rows, own_scores, here, part[:, columns], columns)
            part[:, columns] = -np.inf
            _fill(other_rows, other_scores, here, part, np.arange(count))
        own_scores[rows, 0] = itself
    return CameraNeighbours(own_rows, own_scores, other_rows, other_scores)


def neighbours_in_each_camera(similarity: Similarity, cameras: IntArray, k: int) -> tuple[IntArray, FloatArray]:
    """Find the k nearest crops of each crop in each camera; a crop is no neighbour of itself.

    Args:
        similarity: The similarities of N crops in blocks of rows.
        cameras: (N,) the camera of each crop as an index in 0..C-1.
        k: The length of the lists, at least 1.

    Returns:
        The rows (N, C, k) int64, nearest first, of equal similarities the lower row first, and -1 for nobody; and
        their similarities (N, C, k) float32, -inf for nobody.

    Raises:
        DataError: ``cameras`` or the similarities have a wrong shape, or a similarity is not finite.

    Example:
        >>> vectors = np.float32([[1, 0], [0.6, 0.8], [0.8, 0.6]])
        >>> neighbours_in_each_camera(cosine_blocks(vectors), np.array([0, 0, 1]), k=1)[0].tolist()
        [[[1], [2]], [[0], [2]], [[1], [-1]]]
    """
    check_cameras(cameras)
    count, groups = len(cameras), int(cameras.max()) + 1
    rows_of, scores_of = _empty_lists(count * groups, k)
    listed = [np.flatnonzero(cameras == camera) for camera in range(groups)]
    for start, scores in score_blocks(similarity, count):
        rows = np.arange(start, start + len(scores))
        scores[rows - start, rows] = -np.inf
        for camera, columns in enumerate(listed):
            _fill(rows_of, scores_of, rows * groups + camera, scores[:, columns], columns)
    return rows_of.reshape(count, groups, k), scores_of.reshape(count, groups, k)


def check_cameras(cameras: IntArray) -> None:
    """Raise DataError unless ``cameras`` are integers (N,), at least one."""
    if cameras.ndim != 1 or cameras.dtype.kind != "i" or not len(cameras):
        raise DataError(f"cameras: expected integers (N,), one for each crop, got {cameras.dtype} {cameras.shape}")


def score_blocks(similarity: Similarity, count: int) -> Iterator[tuple[int, FloatArray]]:
    """Go through all ``count`` rows of similarities; yield the first row of each block, and the block.

    Raises:
        DataError: A block has a wrong shape, or a similarity is not finite.
    """
    size = int(np.clip(BLOCK_BYTES // (4 * count), SMALLEST_BLOCK, LARGEST_BLOCK))
    for start in range(0, count, size):
        expected = (min(start + size, count) - start, count)
        scores = similarity(start, start + expected[0])
        if scores.shape != expected:
            raise DataError(f"similarities: expected {expected} for the cameras of {count} crops, got {scores.shape}")
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            raise DataError(f"similarities: row {start + int(np.argmin(finite))} holds NaN or infinity")
        yield start, scores


def _empty_lists(count: int, k: int) -> tuple[IntArray, FloatArray]:
    return np.full((count, k), NOBODY, np.int64), np.full((count, k), -np.inf, np.float32)


def _fill(lists: IntArray, list_scores: FloatArray, rows: IntArray, scores: FloatArray, names: IntArray) -> None:
    """Write the nearest columns of ``scores`` (B, M) to the lists ``rows`` (B,); ``names`` (M,) are the columns' rows.

    Scores of -inf are left out.
    """
    k = lists.shape[1]
    if k == 0:
        return
    bounds = np.maximum(lower_bound(scores, k), np.finfo(np.float32).min)
    which, column, score = pairs_above(scores, bounds[:, None])
    order = np.lexsort((column, -score, which))
    which, column, score = which[order], column[order], score[order]
    rank = np.arange(len(which)) - np.searchsorted(which, np.arange(len(scores)))[which]
    kept = rank < k
    lists[rows[which[kept]], rank[kept]] = names[column[kept]]
    list_scores[rows[which[kept]], rank[kept]] = score[kept]
