"""How alike two networks are without labels: how many nearest neighbours of a crop are the same in both."""

from __future__ import annotations

import numpy as np

from reid.records import FloatArray, IntArray

NEIGHBOURS = 10


def neighbour_overlap(
    first: FloatArray, second: FloatArray, count: int = NEIGHBOURS, gallery: FloatArray | None = None
) -> float:
    """Compute the mean share of the nearest neighbours of a crop that two networks agree on.

    Args:
        first: (N, D) float32, unit rows of one network.
        second: (N, D') float32, unit rows of the other for the same crops.
        count: How many neighbours of a crop are compared, at most N - 1.
        gallery: (N, D') float32, what the rows of ``second`` are compared with; ``second`` itself if None.

    Returns:
        0..1; 1 where both rank the nearest alike.

    Example:
        >>> corners = np.float32([[1, 0], [0, 1], [0.8, 0.6], [0.6, 0.8]])
        >>> neighbour_overlap(corners, corners, 1), neighbour_overlap(corners, corners[::-1], 3)
        (1.0, 1.0)
    """
    count = min(count, len(first) - 1)
    near = _nearest(first, first, count), _nearest(second, second if gallery is None else gallery, count)
    shared = [len(np.intersect1d(one, other)) for one, other in zip(*near, strict=True)]
    return float(np.mean(shared)) / count


def _nearest(vectors: FloatArray, gallery: FloatArray, count: int) -> IntArray:
    """(N, count) the rows of a gallery that are most like each row, the same crop left out."""
    scores = vectors @ gallery.T
    np.fill_diagonal(scores, -np.inf)
    nearest: IntArray = np.argpartition(-scores, count - 1, axis=1)[:, :count].astype(np.int64)
    return nearest
