"""Losses that bring domains together without their labels: on the covariances of maps, on predictions.

Instance selective whitening (ISW) removes the covariances of channels that change with the look of a
photograph and keeps those that do not; entropy and consensus make predictions on an unlabelled domain
certain.  Functions of tensors only; they know nothing of networks, schedules or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reid.errors import ConfigError

Cost = Callable[[np.ndarray, int], np.ndarray]  # of a cluster of the levels begin..end-1, for many beginnings

_VARIANCE_FLOOR = 1e-5  # of an instance normalization: a channel without variance in an image becomes 0


def isw_loss(maps: Tensor, mask: Tensor, margin: float = 0.0) -> Tensor:
    """Instance selective whitening, mean over the images; a scalar >= 0, exactly 0 for an empty mask.

    ``maps`` (B, C, H, W) float, any layer's; each image's channels are first brought to mean 0 and variance
    1, so gain and offset of a channel do not matter.  ``mask`` (C, C) bool, strictly upper triangular: the
    covariances to remove, see :func:`covariance_mask`; all of them (``torch.ones(C, C).triu(1) > 0``) is
    instance whitening.  With n of them and S the covariance of an image, its loss is
    max(0, sum over the mask of |S| - margin) / n (Choi et al., CVPR 2021, "RobustNet").
    """
    channels = maps.shape[1]
    if mask.dtype != torch.bool or mask.shape != (channels, channels):
        raise ConfigError(
            f"isw_loss: expected a bool mask ({channels}, {channels}) for maps of {channels} channels,"
            f" got {str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}"
        )
    excess = (instance_covariances(maps).abs() * mask).sum((1, 2)) - margin
    return functional.relu(excess).mean() / mask.sum().clamp(min=1)


def instance_covariances(maps: Tensor) -> Tensor:
    """Covariances (B, C, C) of the channels over the positions of each image, after instance normalization.

    ``maps`` (B, C, H, W) of at least two positions.  Computed in float32 at least, also under autocast.
    """
    positions = maps.shape[2] * maps.shape[3]
    if positions < 2:
        raise ConfigError(
            f"instance covariances: expected maps of at least 2 positions, got {maps.shape[2]} x {maps.shape[3]};"
            " take an earlier layer or larger images"
        )
    with torch.autocast(maps.device.type, enabled=False):
        values = maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32))
        centred = values - values.mean(2, keepdim=True)
        z = centred * (centred.square().mean(2, keepdim=True) + _VARIANCE_FLOOR).rsqrt()
        return z @ z.mT / (positions - 1)


@torch.no_grad()
def photometric_sensitivity(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """How much each covariance changes with the look of a photograph: (C, C) float64 >= 0, symmetric.

    ``pairs``: maps (B, C, H, W) of the same images as they are and after a jitter of colour and focus, row
    for row, in batches.  The variance of each covariance over the two views, averaged over all images
    as RobustNet does over up to 500 images.
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
    """The covariances that carry style, (C, C) bool, strictly upper triangular, for :func:`isw_loss`.

    ``sensitivity`` (C, C), see :func:`photometric_sensitivity`.  Its values above the diagonal are cut into
    ``clusters`` clusters; the lowest is content and stays, the others are style (RobustNet).
    """
    upper = torch.ones_like(sensitivity, dtype=torch.bool).triu(1)
    mask = torch.zeros_like(upper)
    mask[upper] = cluster_values(sensitivity[upper], clusters) > 0
    return mask


def cluster_values(values: Tensor, clusters: int) -> Tensor:
    """Exact 1-D k-means: values (N,) -> cluster of each (N,) int64, 0 for the lowest, 1 for the next ...

    The partition with the least sum of squared distances to the cluster means, found by dynamic programming
    over sorted values in O(clusters N log N) (Gronlund et al. 2017, arXiv 1701.07204).  Equal values
    share a cluster, so with fewer different values than clusters each value is one.
    """
    if clusters < 1:
        raise ConfigError(f"cluster_values: expected at least 1 cluster, got {clusters}")
    numbers = values.detach().cpu().double().numpy()
    if not np.isfinite(numbers).all():
        raise ConfigError("cluster_values: expected finite values, got NaN or infinity")
    levels, index, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    starts = _cluster_starts(levels, counts, min(clusters, len(levels)))
    of_level = np.searchsorted(starts, np.arange(len(levels)), side="right") - 1
    return torch.from_numpy(of_level[index].astype(np.int64)).to(values.device)


def _cluster_starts(levels: np.ndarray, counts: np.ndarray, clusters: int) -> np.ndarray:
    """Where the best clusters of ascending levels (M,), each ``counts`` times, begin: (clusters,) ascending from 0."""
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
    layers = []
    for used in range(1, clusters):
        best, start = _one_more_cluster(best, used, cost)
        layers.append(start)
    ends = [len(levels)]
    for start in reversed(layers):
        ends.append(int(start[ends[-1]]))
    starts: np.ndarray = np.array([0, *reversed(ends[1:])], np.int64)
    return starts


def _one_more_cluster(best: np.ndarray, used: int, cost: Cost) -> tuple[np.ndarray, np.ndarray]:
    """From the least costs (M + 1,) of the first i levels in ``used`` clusters: those in one more, and where it begins.

    The best beginning never falls as the end rises, so the beginning of a middle end halves the search.
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


def entropy_loss(logits: Tensor) -> Tensor:
    """Mean entropy of the softmax of each row, in nats; a scalar between 0 and log K.

    ``logits`` (B, K) float; -inf marks a candidate that is none.  DIAL trains it on unlabelled target images
    (Carlucci et al. 2017).  Identities of another site are not those of the training, so for
    re-identification the K candidates should be images or centres of the site itself (similarities over a
    temperature), not the classes of a classifier.
    """
    surprise = functional.log_softmax(logits, 1)
    probability = surprise.exp()
    return -(probability * surprise.masked_fill(probability == 0, 0.0)).sum(1).mean()


def consensus_loss(first: Tensor, second: Tensor) -> Tensor:
    """Min-entropy consensus of two views of the same images; a scalar >= 0, 0 when both are sure of one candidate.

    Mean over images of min over k of -(log p_k + log q_k) / 2, p and q being the softmax of the two views'
    logits (B, K), row for row (Roy et al., CVPR 2019, "MEC").  What the candidates are: see
    :func:`entropy_loss`.  The labels the two agree on are not fixed, so it needs another loss beside it.
    """
    if first.shape != second.shape:
        raise ConfigError(
            "consensus_loss: expected two views of the same images,"
            f" got logits {tuple(first.shape)} and {tuple(second.shape)}"
        )
    agreed = functional.log_softmax(first, 1) + functional.log_softmax(second, 1)
    return -agreed.amax(1).mean() / 2
