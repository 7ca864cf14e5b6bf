"""Join clusters of visible and of infrared crops where the network can match across light.

Most networks of visible images cannot, and joining by guess would spoil what they can do.  So matches count only where
they are far more frequent than between sets of vectors that have nothing to do with each other.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from reid.adaptation.contrast import unit_means
from reid.adaptation.stop_rule import FEWEST_CLUSTERS
from reid.records import FloatArray, IntArray

ROTATIONS = 20  # sets of unrelated vectors, by which chance is measured
LEAST_OF_COUNT = 2.0  # deviations of the number of matches above its mean over these sets
LEAST_OF_PEAK = 8.0  # deviations of how far the best of a row stands out; wrong matches were at 4, right ones at 14


def mutual_matches(scores: FloatArray) -> IntArray:
    """Find the pairs that are the best of their row and of their column.

    Args:
        scores: (A, B) float32.

    Returns:
        (M, 2) int64 pairs of row and column.

    Example:
        >>> mutual_matches(np.float32([[0.9, 0.1], [0.8, 0.2]])).tolist()
        [[0, 0]]
    """
    best = scores.argmax(1)
    rows = np.arange(len(scores))
    mutual = scores.argmax(0)[best] == rows
    return np.stack([rows[mutual], best[mutual]], 1)


def matches_beyond_chance(first: FloatArray, second: FloatArray, seed: int = 0) -> IntArray:
    """Find matches of two sets of vectors, if there are far more than between unrelated sets of the same geometry.

    A random rotation of the second set keeps how its vectors lie to each other and takes away what they have in common
    with the first.  Two numbers must exceed their mean over 20 rotations: that of mutual matches, by 2 deviations, and
    how far the best of a row stands out from the row, by 8.  Sets that share a structure but no identities, such as
    visible and infrared crops of a network that cannot match across light, reach neither.

    Args:
        first: (A, D) float32, unit rows.
        second: (B, D) float32, unit rows.
        seed: Decides the rotations.

    Returns:
        (M, 2) int64 pairs of row numbers; no pair where matches are not beyond chance.

    Example:
        >>> vectors = np.eye(40, dtype=np.float32)
        >>> len(matches_beyond_chance(vectors, vectors)), len(matches_beyond_chance(vectors[:20], vectors[20:]))
        (40, 0)
    """
    scores = _compared(first, second)
    found = mutual_matches(scores)
    if len(first) < FEWEST_CLUSTERS or len(second) < FEWEST_CLUSTERS:
        return found[:0]
    random = np.random.default_rng(seed)
    by_chance = []
    for _ in range(ROTATIONS):
        rotation, _ = np.linalg.qr(random.standard_normal((second.shape[1], second.shape[1])))
        by_chance.append(_strength(_compared(first, second @ rotation.astype(np.float32))))
    mean, deviation = np.mean(by_chance, axis=0), np.std(by_chance, axis=0).clip(1e-6)
    above = (np.array(_strength(scores)) - mean) / deviation
    return found if above[0] >= LEAST_OF_COUNT and above[1] >= LEAST_OF_PEAK else found[:0]


def _strength(scores: FloatArray) -> tuple[float, float]:
    """Return the number of mutual matches, and the mean of how many deviations the best of a row is above the row."""
    peaks = (scores.max(1) - scores.mean(1)) / scores.std(1).clip(1e-12)
    return float(len(mutual_matches(scores))), float(peaks.mean())


def _compared(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the inner products less the mean of their row and of their column, so that no vector matches all."""
    scores = first @ second.T
    centered: FloatArray = scores - scores.mean(1, keepdims=True) - scores.mean(0, keepdims=True)
    return centered


def join_groups(
    vectors: FloatArray, labels: IntArray, cluster_groups: IntArray, pairs: list[tuple[int, int]], seed: int = 0
) -> IntArray:
    """Number the persons that clusters show: clusters of two groups that match get one number.

    Args:
        vectors: (N, D) float32, centered per camera.
        labels: (N,) int64, the cluster of each crop, -1 for none.
        cluster_groups: (K,) int64, the group of each cluster.
        pairs: Pairs of groups that may show the same persons.
        seed: Decides what is measured as chance.

    Returns:
        (K,) int64, the number of the person of each cluster.
    """
    persons = np.arange(len(cluster_groups))
    means = unit_means(vectors, labels, len(cluster_groups))
    for one, other in pairs:
        first, second = (np.flatnonzero(cluster_groups == group) for group in (one, other))
        for a, b in matches_beyond_chance(means[first], means[second], seed).tolist():
            persons[second[b]] = persons[first[a]]
    return persons


def pairs_across_light(group_names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the pairs of groups of one category and of different light.

    Example:
        >>> pairs_across_light(("person infrared", "person visible", "vehicle visible"))
        [(0, 1)]
    """
    categories = [name.rpartition(" ")[0] for name in group_names]
    return [(i, j) for i, j in combinations(range(len(group_names)), 2) if categories[i] == categories[j]]
