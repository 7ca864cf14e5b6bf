"""Find the clusters of unlabelled crops: neighbours by normalized scores, camera-aware Jaccard similarity, density.

The steps are: center the embeddings of each camera, normalize scores per pair of cameras (CSLS), compare neighbour
lists (CA-Jaccard), and cluster by density (DBSCAN).  Every group, such as the visible crops of people, is clustered by
itself, because scores across light or across categories say little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reid.adaptation.stop_rule import ClusterFigures, figures_of
from reid.records import FloatArray, IntArray
from reid.retrieval.camera_jaccard import camera_jaccard
from reid.retrieval.camera_neighbours import own_and_other_neighbours
from reid.retrieval.centering import centered_by_camera
from reid.retrieval.score_normalization import normalize_among

if TYPE_CHECKING:
    import scipy.sparse

    from reid.adaptation.site_crops import SiteCrops


SMALLEST_K, LARGEST_K = 4, 8  # neighbours in a camera; few where people have few or unequal numbers of crops
ROUNDS = 5  # of estimating how many crops a person has in a camera


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

    @classmethod
    def for_crops(cls, crops: float, *, cameras: bool = True) -> ClusterSettings:
        """Return the settings for so many crops of a person in each camera: as many neighbours, within bounds.

        Args:
            crops: Crops of a person in a camera, or in all where no camera is known.
            cameras: Whether there are several cameras; without, one list of neighbours takes the role of two.

        Example:
            >>> ClusterSettings.for_crops(6.4).k1, ClusterSettings.for_crops(1).k2
            ((6, 6), (2, 2))
            >>> ClusterSettings.for_crops(6.4, cameras=False).k1
            (8, 8)
        """
        times = 1 if cameras else 2
        k = min(max(round(crops), SMALLEST_K * times), LARGEST_K * times)
        return cls((k, k), (k // 2, k // 2))


@dataclass(frozen=True, eq=False)
class Clustering:
    """The clusters of all groups.

    Attributes:
        vectors: (N, D) float32, the embeddings that were clustered, centered per camera.
        labels: (N,) int64, the cluster of each crop, -1 for none; a cluster holds crops of one group.
        figures: The figures of each group, in the order of the groups.
        settings: How each group was clustered.
    """

    vectors: FloatArray
    labels: IntArray
    figures: tuple[ClusterFigures, ...]
    settings: tuple[ClusterSettings, ...]

    @property
    def quality(self) -> float:
        """The mean quality of the groups, weighted by their crops, 0..1."""
        crops = [figures.crops for figures in self.figures]
        return float(np.average([figures.quality for figures in self.figures], weights=crops))


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

    similarity = camera_jaccard(normalize_among(vectors, cameras), cameras, k1=settings.k1, k2=settings.k2)
    distance = _near_pairs(similarity, settings.radius)
    found = DBSCAN(eps=settings.radius, min_samples=settings.fewest, metric="precomputed").fit(distance)
    labels: IntArray = found.labels_.astype(np.int64)
    return labels


def fitting_clusters(vectors: FloatArray, cameras: IntArray) -> tuple[IntArray, ClusterSettings]:
    """Cluster the crops of a group with the settings that fit the number of crops that a person has in a camera.

    The first clustering assumes few crops.  Its clusters tell how many a person has, as the median, and the next one
    assumes so many, until the number stays.  Where the numbers are unequal the median stays small, and small settings
    merge fewer people.

    Args:
        vectors: (M, D) float32, unit rows, centered per camera.
        cameras: (M,) int64, the camera of each crop.

    Returns:
        (M,) int64, the cluster of each crop, -1 for none; and the settings.
    """
    several = len(np.unique(cameras)) > 1
    settings = ClusterSettings.for_crops(SMALLEST_K, cameras=several)
    labels = cluster_group(vectors, cameras, settings)
    for _ in range(ROUNDS):
        better = ClusterSettings.for_crops(figures_of(labels, cameras, "").crops_a_camera, cameras=several)
        if better.k1 <= settings.k1:
            break
        settings, labels = better, cluster_group(vectors, cameras, better)
    return labels, settings


def share_of_repeats(vectors: FloatArray, cameras: IntArray) -> float:
    """Return the share of the crops whose most similar crop, by normalized score, is of the own camera.

    Args:
        vectors: (M, D) float32, unit rows, centered per camera.
        cameras: (M,) int64, the camera of each crop.

    Returns:
        0..1; 1 where there is one camera.
    """
    near = own_and_other_neighbours(normalize_among(vectors, cameras), cameras, 2, 1)
    if not near.other_scores.shape[1] or near.own_scores.shape[1] < 2:
        return float(not near.other_scores.shape[1])
    return float((near.own_scores[:, 1] > near.other_scores[:, 0]).mean())


def cluster_site(vectors: FloatArray, crops: SiteCrops, groups: Sequence[int]) -> Clustering:
    """Cluster the crops of some groups, each by itself.

    Args:
        vectors: (N, D) float32, the embeddings of all crops.
        crops: The crops.
        groups: The groups to cluster; crops of others are in no cluster.
    """
    centered = centered_by_camera(vectors, crops.cameras)
    labels = np.full(len(crops), -1, np.int64)
    figures, settings, count = [], [], 0
    for group in groups:
        rows = np.flatnonzero(crops.groups == group)
        found, used = fitting_clusters(centered[rows], crops.cameras[rows])
        repeated = share_of_repeats(centered[rows], crops.cameras[rows])
        figures.append(figures_of(found, crops.cameras[rows], crops.group_names[group], repeated))
        settings.append(used)
        labels[rows] = np.where(found >= 0, found + count, -1)
        count += int(found.max(initial=-1)) + 1
    return Clustering(centered, labels, tuple(figures), tuple(settings))


def _near_pairs(similarity: scipy.sparse.csr_matrix, radius: float) -> scipy.sparse.csr_matrix:
    """Return the distances of all pairs that are within the radius; DBSCAN takes a missing pair as farther."""
    import scipy.sparse

    near = similarity.tocoo()
    kept = near.data >= np.float32(1 - radius)
    distance = 1 - near.data[kept].astype(np.float64)
    return scipy.sparse.csr_matrix((distance, (near.row[kept], near.col[kept])), shape=near.shape)
