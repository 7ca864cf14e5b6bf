"""Camera-balanced expansion: replace each vector by the mean of itself and its nearest crops of every camera.

Average query expansion over the nearest crops averages mostly crops of one camera, so that the mean looks even more
like this camera. Here every camera contributes the same number of crops. An expansion over more crops than an identity
has in a camera mixes identities, so use it where :mod:`reid.retrieval.identity_size` finds enough of them.
"""

from __future__ import annotations

import numpy as np

from reid.errors import DataError
from reid.records import FloatArray, IntArray
from reid.retrieval.camera_neighbours import NOBODY, Similarity, check_cameras, neighbours_in_each_camera

ROWS_AT_ONCE = 256


def expand_by_camera(
    vectors: FloatArray, similarity: Similarity, cameras: IntArray, *, own: int, others: int
) -> FloatArray:
    """Replace each vector by the mean of itself and its nearest crops of its own and of each other camera.

    Args:
        vectors: (N, D) float32 of unit length.
        similarity: (start, stop) -> the similarities (stop - start, N) float32 that choose the nearest crops, best
            normalized for each pair of cameras (:func:`~reid.retrieval.score_normalization.normalize_among`).
        cameras: (N,) int64, the camera of each crop as an index in 0..C-1.
        own: How many crops of the own camera, besides the crop itself; fewer where the camera holds fewer.
        others: How many crops of each other camera; fewer where the camera holds fewer.

    Returns:
        (N, D) float32 of unit length.

    Raises:
        DataError: A number is negative, a shape is wrong, or a mean is zero.

    Example:
        >>> from reid.retrieval.camera_neighbours import cosine_blocks
        >>> vectors = np.float32([[1, 0], [0.6, 0.8], [0.8, 0.6]])
        >>> found = expand_by_camera(vectors, cosine_blocks(vectors), np.array([0, 0, 1]), own=0, others=1)
        >>> [round(float(value), 2) for value in found[0]]
        [0.95, 0.32]
    """
    check_cameras(cameras)
    if own < 0 or others < 0 or own + others == 0:
        raise DataError(f"expansion: expected numbers of crops of at least 0, and one above, got {own} and {others}")
    if vectors.ndim != 2 or len(vectors) != len(cameras):
        raise DataError(f"expansion: expected vectors ({len(cameras)}, D), got {vectors.shape}")
    rows, _ = neighbours_in_each_camera(similarity, cameras, max(own, others))
    rank = np.arange(rows.shape[2])
    limit = np.where(cameras[:, None] == np.arange(rows.shape[1]), own, others)  # (N, C)
    rows[rank >= limit[:, :, None]] = NOBODY
    lists = rows.reshape(len(rows), -1)
    expanded = np.empty_like(vectors)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        block = lists[start : start + ROWS_AT_ONCE]
        sums = vectors[start : start + ROWS_AT_ONCE].astype(np.float64)
        for column in block.T:
            present = column != NOBODY
            sums[present] += vectors[column[present]]
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        if not lengths.all():
            raise DataError(f"expansion: row {start + int(np.argmin(lengths))} and its neighbours have the mean zero")
        expanded[start : start + ROWS_AT_ONCE] = sums / lengths
    return expanded
