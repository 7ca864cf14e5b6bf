"""Cluster contrast: the memory of cluster centroids and camera proxies, its two losses, and the crops of a step.

A centroid stands for a cluster, and a camera proxy for the crops of a cluster in one camera.  The cluster loss draws an
embedding to its centroid (Dai et al., Cluster Contrast, ACCV 2022).  The proxy loss draws it to the proxies of its
cluster in the *other* cameras, away from the proxies of other clusters that are hardest to tell from it (Wang et al.,
CAP, AAAI 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from reid.records import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]

TEMPERATURE = 0.05  # of the cluster loss
PROXY_TEMPERATURE = 0.07
PROXY_WEIGHT = 0.5
HARD_PROXIES = 50  # proxies of other clusters in the denominator of the proxy loss
MOMENTUM = 0.8  # share of the old vector when an embedding moves the memory

CLUSTERS_A_STEP = 16
CROPS_A_STEP = 64  # about; two crops a cluster and camera where this allows it, else one
MAX_CAMERAS = 8  # of a cluster in one step
SMALLEST_PART = 4  # crops of one normalization domain in a step; fewer have poor statistics and are left out


@dataclass(frozen=True, eq=False)
class Assignments:
    """Which crops belong to which cluster, and which clusters may be compared.

    Attributes:
        labels: (N,) int64 in 0..K-1, the cluster of each crop, -1 for none.
        groups: (K,) int64, the group of each cluster; a group (a modality, say) is clustered by itself.
        persons: (K,) int64; clusters of two groups that show the same person have the same number.
    """

    labels: IntArray
    groups: IntArray
    persons: IntArray

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def comparable(self) -> BoolArray:
        """(K, G) bool: whether the cluster may be compared with clusters of the group.

        A cluster is compared with those of its own group, and with those of another group only where it has its
        counterpart there; elsewhere the same person might be among them.
        """
        allowed = np.zeros((len(self), int(self.groups.max(initial=-1)) + 1), bool)
        for person in np.unique(self.persons):
            members = np.flatnonzero(self.persons == person)
            allowed[np.ix_(members, self.groups[members])] = True
        return allowed


def unit_means(vectors: FloatArray, numbers: IntArray, count: int) -> FloatArray:
    """Compute the mean of the rows of each number, scaled to unit length.

    Args:
        vectors: (N, D) float32.
        numbers: (N,) int64 in 0..count-1; rows with -1 are left out.
        count: How many means, each of at least one row.

    Returns:
        (count, D) float32.

    Example:
        >>> unit_means(np.float32([[3, 0], [0, 3], [0, 1]]), np.array([0, 1, -1]), 2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    sums = np.zeros((count, vectors.shape[1]), np.float64)
    used = numbers >= 0
    np.add.at(sums, numbers[used], vectors[used])
    means: FloatArray = (sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)
    return means


class Memory:
    """The centroids and camera proxies of one epoch.

    Attributes:
        centroids: (K, D) float32, unit rows.
        proxies: (P, D) float32, unit rows, one for each cluster and camera that has crops.
        proxy_cluster: (P,) int64.
        proxy_camera: (P,) int64.

    Args:
        vectors: (N, D) float32, the embeddings of all crops.
        assigned: The clusters of the crops.
        cameras: (N,) int64, the camera of each crop.

    Example:
        >>> assigned = Assignments(np.array([0, 0, 1]), np.array([0, 0]), np.array([0, 1]))
        >>> memory = Memory(np.float32([[1, 0], [1, 0], [0, 1]]), assigned, np.array([0, 1, 0]))
        >>> memory.centroids.tolist(), memory.proxy_cluster.tolist(), memory.proxy_camera.tolist()
        ([[1.0, 0.0], [0.0, 1.0]], [0, 0, 1], [0, 1, 0])
    """

    def __init__(self, vectors: FloatArray, assigned: Assignments, cameras: IntArray) -> None:
        clustered = assigned.labels >= 0
        pairs = np.stack([assigned.labels, cameras], 1)
        distinct, numbers = np.unique(pairs[clustered], axis=0, return_inverse=True)
        proxy_of_crop = np.full(len(vectors), -1, np.int64)
        proxy_of_crop[clustered] = numbers.reshape(-1)
        self.centroids = torch.from_numpy(unit_means(vectors, assigned.labels, len(assigned)))
        self.proxies = torch.from_numpy(unit_means(vectors, proxy_of_crop, len(distinct)))
        self.proxy_cluster, self.proxy_camera = (torch.from_numpy(column.copy()) for column in distinct.T)
        self._proxy_of = torch.full((len(assigned), int(cameras.max(initial=0)) + 1), -1)
        self._proxy_of[self.proxy_cluster, self.proxy_camera] = torch.arange(len(distinct))
        self._groups, self._persons = torch.from_numpy(assigned.groups), torch.from_numpy(assigned.persons)
        self._comparable = torch.from_numpy(assigned.comparable)

    def loss(self, embeddings: Tensor, clusters: Tensor, cameras: Tensor) -> Tensor:
        """Compute the cluster loss and half the proxy loss.

        Args:
            embeddings: (B, D) float32, unit rows.
            clusters: (B,) int64, the cluster of each row.
            cameras: (B,) int64, the camera of each row.

        Returns:
            A scalar.
        """
        return self.cluster_loss(embeddings, clusters) + PROXY_WEIGHT * self.proxy_loss(embeddings, clusters, cameras)

    def cluster_loss(self, embeddings: Tensor, clusters: Tensor) -> Tensor:
        """Compute the cross-entropy over the centroids of the own group, temperature 0.05."""
        logits = embeddings @ self.centroids.T / TEMPERATURE  # (B, K)
        other_group = self._groups[clusters][:, None] != self._groups[None]
        return functional.cross_entropy(logits.masked_fill(other_group, -torch.inf), clusters)

    def proxy_loss(self, embeddings: Tensor, clusters: Tensor, cameras: Tensor) -> Tensor:
        """Compute the contrast of proxies in other cameras with the hardest proxies of other clusters.

        For a row i with positives P_i (proxies of the same person in other cameras) and negatives N_i (the 50 proxies
        of other persons that are most similar to it): -mean over p in P_i of log softmax over P_i and N_i.  Rows
        without a positive do not count; the loss is 0 where no row has one.
        """
        logits = embeddings @ self.proxies.T / PROXY_TEMPERATURE  # (B, P)
        same = self._persons[clusters][:, None] == self._persons[self.proxy_cluster][None]
        positive = same & (cameras[:, None] != self.proxy_camera[None])
        rows = positive.any(1)
        if not rows.any():
            return embeddings.sum() * 0
        comparable = self._comparable[clusters][:, self._groups[self.proxy_cluster]]
        others = logits.masked_fill(same | ~comparable, -torch.inf)
        hardest = others.topk(min(HARD_PROXIES, others.shape[1]), dim=1).values
        total = torch.cat([logits.masked_fill(~positive, -torch.inf), hardest], 1)[rows].logsumexp(1, keepdim=True)
        own = positive[rows].to(logits.dtype)
        return (((total - logits[rows]) * own).sum(1) / own.sum(1)).mean()

    @torch.no_grad()
    def update(self, embeddings: Tensor, clusters: Tensor, cameras: Tensor) -> None:
        """Move centroids and the proxies of the own camera toward embeddings, one row after the other."""
        for vector, cluster, proxy in zip(
            embeddings, clusters.tolist(), self._proxy_of[clusters, cameras].tolist(), strict=True
        ):
            for table, row in ((self.centroids, cluster), (self.proxies, proxy)):
                table[row] = functional.normalize(MOMENTUM * table[row] + (1 - MOMENTUM) * vector, dim=0)


def crops_a_camera(cameras: int) -> int:
    """Return how many crops of a cluster a step takes from each of its cameras.

    Example:
        >>> [crops_a_camera(cameras) for cameras in (1, 2, 4, 6)]
        [4, 2, 1, 1]
    """
    return max(1, CROPS_A_STEP // (CLUSTERS_A_STEP * max(cameras, 1)))


def draw_step(assigned: Assignments, cameras: IntArray, domain: IntArray, random: np.random.Generator) -> IntArray:
    """Draw the crops of one step: of every group 16 clusters, and some crops of each in each camera.

    Args:
        assigned: The clusters of the crops.
        cameras: (N,) int64, the camera of each crop.
        domain: (N,) int64, the normalization domain of each crop.
        random: Decides the result.

    Returns:
        (B,) int64 row numbers, sorted by domain; domains with fewer than 4 crops in the step are left out.
    """
    chosen: list[int] = []
    for group in np.unique(assigned.groups):
        members = np.flatnonzero(assigned.groups == group)
        rows_of_group = np.flatnonzero(np.isin(assigned.labels, members))
        wanted = crops_a_camera(len(np.unique(cameras[rows_of_group])))
        for cluster in random.permutation(members)[:CLUSTERS_A_STEP]:
            chosen += _crops_of(np.flatnonzero(assigned.labels == cluster), cameras, wanted, random)
    rows = np.array(chosen, np.int64)
    rows = rows[np.argsort(domain[rows], kind="stable")]
    names, counts = np.unique(domain[rows], return_counts=True)
    return rows[np.isin(domain[rows], names[counts >= SMALLEST_PART])]


def _crops_of(rows: IntArray, cameras: IntArray, wanted: int, random: np.random.Generator) -> Sequence[int]:
    """Draw ``wanted`` of the rows of a cluster in each of its cameras, or all where it has fewer."""
    chosen: list[int] = []
    for camera in random.permutation(np.unique(cameras[rows]))[:MAX_CAMERAS]:
        chosen += random.permutation(rows[cameras[rows] == camera])[:wanted].tolist()
    return chosen
