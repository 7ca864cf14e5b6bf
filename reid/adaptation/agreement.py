"""How well crops of different cameras agree, without labels: the share of mutual nearest neighbours across cameras."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from reid.adaptation.site_crops import SiteCrops
from reid.records import FloatArray, IntArray
from reid.retrieval.normalization_choice import nearest_both_ways


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
            there, back = nearest_both_ways(vectors[first], vectors[second])
            shares.append(float((back[there] == np.arange(len(first))).mean()))
    return float(np.mean(shares)) if shares else float("nan")


def share_in_site(vectors: FloatArray, crops: SiteCrops) -> float:
    """Return :func:`mutual_share` of all crops of a site."""
    return mutual_share(vectors, crops.cameras, crops.groups)
