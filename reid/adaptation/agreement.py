"""How well crops of different cameras agree, without labels: the share of mutual nearest neighbours across cameras."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from reid.adaptation.site_crops import SiteCrops
from reid.records import FloatArray, IntArray

ROWS_AT_ONCE = 512


def mutual_share(vectors: FloatArray, cameras: IntArray, groups: IntArray) -> float:
    """Return the share of crops that are the nearest neighbour of their nearest neighbour in another camera.

    Args:
        vectors: (N, D) float32, unit rows.
        cameras: (N,) int64, the camera of each crop.
        groups: (N,) int64; only crops of one group are compared.

    Returns:
        The mean over all pairs of cameras of a group, 0..1; NaN where there is no such pair.

    Example:
        >>> vectors = np.float32([[1, 0], [0, 1], [0.8, 0.6], [0.6, 0.8]])
        >>> mutual_share(vectors, np.array([0, 0, 1, 1]), np.zeros(4, np.int64))
        1.0
    """
    shares = []
    for group in np.unique(groups):
        rows = [np.flatnonzero((groups == group) & (cameras == camera)) for camera in np.unique(cameras)]
        for first, second in combinations([part for part in rows if len(part)], 2):
            there, back = _nearest(vectors[first], vectors[second])
            shares.append(float((back[there] == np.arange(len(first))).mean()))
    return float(np.mean(shares)) if shares else float("nan")


def share_in_site(vectors: FloatArray, crops: SiteCrops) -> float:
    """Return :func:`mutual_share` of all crops of a site."""
    return mutual_share(vectors, crops.cameras, crops.groups)


def _nearest(first: FloatArray, second: FloatArray) -> tuple[IntArray, IntArray]:
    """For each row of the first the nearest of the second (A,), and the reverse (B,)."""
    there = np.empty(len(first), np.int64)
    back, best = np.zeros(len(second), np.int64), np.full(len(second), -np.inf, np.float32)
    for start in range(0, len(first), ROWS_AT_ONCE):
        scores = first[start : start + ROWS_AT_ONCE] @ second.T
        there[start : start + ROWS_AT_ONCE] = scores.argmax(1)
        highest = scores.max(0)
        better = highest > best
        back[better] = scores.argmax(0)[better] + start
        best[better] = highest[better]
    return there, back
