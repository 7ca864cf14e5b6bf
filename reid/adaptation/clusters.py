"""Find the clusters of unlabelled crops: neighbours by normalized scores, camera-aware Jaccard similarity, density.

The steps are: center the embeddings of each camera, normalize scores per pair of cameras (CSLS), compare neighbour
lists (CA-Jaccard), and cluster by density (DBSCAN).  Every group, such as the visible crops of people, is clustered by
itself, because scores across light or across categories say little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.adaptation.contrast import Assignments, unit_means
from reid.adaptation.site_crops import SiteCrops
from reid.adaptation.stop_rule import ClusterFigures, figures_of
from reid.records import FloatArray, IntArray

NOT_CLUSTERED = -1


@dataclass(frozen=True)
class ClusterSettings:
    """How crops are clustered.

    Attributes:
        k1: Neighbours that must be mutual, in the own camera and in the others.
        k2: Neighbours that the lists are averaged over, in the own camera and in the others.
        radius: Largest Jaccard distance between neighbours of a cluster, 0..1.
        fewest: Crops within the radius, itself included, that make a crop the core of a cluster.
    """

    k1: tuple[int, int] = (8, 8)
    k2: tuple[int, int] = (4, 4)
    radius: float = 0.5
    fewest: int = 4


FIRST = ClusterSettings((4, 4), (2, 2))
FEWEST_CLUSTERED = 1  # a group without any cluster keeps the first settings


@dataclass(frozen=True, eq=False)
class Clustering:
    """The clusters of all groups.

    Attributes:
        assigned: The cluster of each crop, and which clusters may be compared.
        figures: The figures of each group, in the order of the groups.
    """

    assigned: Assignments
    figures: tuple[ClusterFigures, ...]


def centered_by_camera(vectors: FloatArray, cameras: IntArray) -> FloatArray:
    """Subtract from each row the mean of its camera, and scale to unit length.

    Args:
        vectors: (N, D) float32.
        cameras: (N,) int64.

    Returns:
        (N, D) float32; a row that equals the mean of its camera stays as it was.

    Example:
        >>> centered_by_camera(np.float32([[1, 1], [1, -1], [0, 1]]), np.array([0, 0, 1])).tolist()
        [[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]]
    """
    means = np.zeros((int(cameras.max(initial=0)) + 1, vectors.shape[1]))
    np.add.at(means, cameras, vectors)
    means /= np.bincount(cameras, minlength=len(means)).clip(1)[:, None]
    moved = vectors - means[cameras]
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.where(lengths > 1e-6, moved / lengths.clip(1e-6), vectors).astype(np.float32)


def cluster_group(vectors: FloatArray, cameras: IntArray, settings: ClusterSettings) -> IntArray:
    """Cluster the crops of one group.

    Args:
        vectors: (M, D) float32, unit rows, centered per camera.
        cameras: (M,) int64, the camera of each crop; all equal where none is known.
        settings: How they are clustered.

    Returns:
        (M,) int64, the cluster of each crop from 0, -1 for none.
    """
    from sklearn.cluster import DBSCAN

    similarity = camera_jaccard(csls_blocks(vectors, cameras), cameras, k1=settings.k1, k2=settings.k2)
    distance = _near_pairs(similarity, settings.radius)
    found = DBSCAN(eps=settings.radius, min_samples=settings.fewest, metric="precomputed").fit(distance)
    return found.labels_.astype(np.int64)
