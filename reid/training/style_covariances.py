"""Which covariances of channels carry style: they change when an image gets other colours, and identity does not.

Instance selective whitening (Choi et al., CVPR 2021, "RobustNet") removes these covariances and keeps the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from reid.errors import ConfigError
from reid.training.losses import instance_covariances

ClusterCost = Callable[[np.ndarray, int], np.ndarray]  # of a cluster of the levels begin..end-1, for many beginnings


@torch.no_grad()
def photometric_sensitivity(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Measure how much each covariance changes with the colours and the focus of an image.

    The result is the variance of each covariance over the two views of an image, averaged over all images.
    (RobustNet averages over up to 500 images.)

    Args:
        pairs: Batches of maps (B, C, H, W): of images as they are, and of the same images after a jitter of colour
            and focus, row for row.

    Returns:
        The sensitivity (C, C) float64 >= 0, symmetric.

    Raises:
        ConfigError: There are no images, or the two views of a batch have different shapes.
    """
    total, images = torch.zeros((), dtype=torch.float64), 0
    for plain, jittered in pairs:
        if plain.shape != jittered.shape:
            raise ConfigError(
                "photometric_sensitivity: expected two views of the same images,"
                f" got maps {tuple(plain.shape)} and {tuple(jittered.shape)}"
            )
        change = instance_covariances(plain).double() - instance_covariances(jittered).double()
        total = total.to(change.device) + (change / 2).square().sum(0)
        images += len(plain)
    if not images:
        raise ConfigError("photometric_sensitivity: got no images; give at least one pair of batches")
    return total / images


def covariance_mask(sensitivity: Tensor, clusters: int = 3) -> Tensor:
    """Choose the covariances that carry style.

    The sensitivities above the diagonal are cut into clusters. The covariances of the lowest cluster are content and
    stay; the others are style (RobustNet).

    Args:
        sensitivity: How much each covariance changes, (C, C); see :func:`photometric_sensitivity`.
        clusters: The number of clusters.

    Returns:
        A mask (C, C) bool, strictly upper triangular, for :func:`~reid.training.losses.isw_loss`.

    Raises:
        ConfigError: A sensitivity is not finite, or ``clusters`` is smaller than 1.

    Example:
        >>> covariance_mask(torch.tensor([[0.0, 0.1, 5.0], [0.1, 0.0, 0.1], [5.0, 0.1, 0.0]])).nonzero().tolist()
        [[0, 2]]
    """
    upper = torch.ones_like(sensitivity, dtype=torch.bool).triu(1)
    mask = torch.zeros_like(upper)
    mask[upper] = cluster_values(sensitivity[upper], clusters) > 0
    return mask


def cluster_values(values: Tensor, clusters: int) -> Tensor:
    """Cut numbers into clusters by exact one-dimensional k-means.

    The partition has the least sum of squared distances to the means of the clusters. It is found by dynamic
    programming over the sorted values in O(clusters N log N) (Gronlund et al. 2017, arXiv 1701.07204). Equal values
    share a cluster, so with fewer different values than clusters each different value is a cluster.

    Args:
        values: Finite numbers (N,).
        clusters: The largest number of clusters.

    Returns:
        The cluster (N,) int64 of each value: 0 for the lowest values, 1 for the next and so on.

    Raises:
        ConfigError: A value is not finite, or ``clusters`` is smaller than 1.

    Example:
        >>> cluster_values(torch.tensor([0.1, 9.0, 0.0, 9.5]), 2).tolist()
        [0, 1, 0, 1]
    """
    if clusters < 1:
        raise ConfigError(f"cluster_values: expected at least 1 cluster, got {clusters}")
    numbers = values.detach().cpu().double().numpy()
    if not np.isfinite(numbers).all():
        raise ConfigError("cluster_values: expected finite values, got NaN or infinity")
    levels, index, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    starts = _cluster_starts(levels, counts, min(clusters, len(levels)))
    cluster_of_level = np.searchsorted(starts, np.arange(len(levels)), side="right") - 1
    return torch.from_numpy(cluster_of_level[index].astype(np.int64)).to(values.device)


def _cluster_starts(levels: np.ndarray, counts: np.ndarray, clusters: int) -> np.ndarray:
    """Find where the best clusters begin: (clusters,) ascending from 0.

    ``levels`` (M,) are different values in ascending order; ``counts`` (M,) is how often each one occurs.
    """
    if not len(levels):
        return np.zeros(1, np.int64)
    centred = (levels - np.average(levels, weights=counts)) / (np.ptp(levels) or 1.0)
    # Sums over levels[:i], so that a cluster i..j-1 costs S2 - S1^2 / S0 of their differences.
    mass, first, second = (np.concatenate([[0.0], np.cumsum(counts * centred**power)]) for power in range(3))

    def cost(begin: np.ndarray, end: int) -> np.ndarray:
        sums = first[end] - first[begin]
        squares: np.ndarray = second[end] - second[begin] - sums**2 / (mass[end] - mass[begin])
        return squares

    best = np.array([np.inf, *(cost(np.array([0]), end)[0] for end in range(1, len(levels) + 1))])
    starts_by_count = []
    for used in range(1, clusters):
        best, start = _add_cluster(best, used, cost)
        starts_by_count.append(start)
    ends = [len(levels)]
    for start in reversed(starts_by_count):
        ends.append(int(start[ends[-1]]))
    starts: np.ndarray = np.array([0, *reversed(ends[1:])], np.int64)
    return starts


def _add_cluster(best: np.ndarray, used: int, cost: ClusterCost) -> tuple[np.ndarray, np.ndarray]:
    """Compute the least costs with one more cluster than ``used``, and where the last cluster begins.

    ``best`` (M + 1,) holds the least cost of the first i levels in ``used`` clusters. The best beginning never falls
    as the end rises, so the beginning for a middle end halves the search.
    """
    more, start = np.full_like(best, np.inf), np.zeros(len(best), np.int64)
    todo = [(used + 1, len(best) - 1, used, len(best) - 2)]  # first and last end, first and last beginning
    while todo:
        first_end, last_end, low, high = todo.pop()
        if first_end > last_end:
            continue
        end = (first_end + last_end) // 2
        begins = np.arange(low, min(high, end - 1) + 1)
        totals = best[begins] + cost(begins, end)
        chosen = int(totals.argmin())
        more[end], start[end] = totals[chosen], begins[chosen]
        todo += [(first_end, end - 1, low, int(begins[chosen])), (end + 1, last_end, int(begins[chosen]), high)]
    return more, start
