"""Resample the crops of a camera to find how certain its statistics are, and whether new crops still fit them.

Everything is computed from the moments of single images (:mod:`reid.models.image_statistics`).  Distances are those of
:meth:`reid.norm.Profiles.drift`: in each layer the 2-Wasserstein distance over the deviation, averaged over the layers.
0 means the same, 1 means that activations moved by as much as they vary.  Crops of one person, or almost the same image
twice, are no independent sample, so whole groups of them are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reid.errors import ConfigError, DataError
from reid.models.image_statistics import ImageStatistics
from reid.norm.statistics import Statistics
from reid.records import IntArray

ALIKE = 0.9  # thumbnails that correlate this much are taken for the same image
DRAWS = 999  # resamplings behind a threshold
HALVINGS = 20
FEWEST = 8  # crops that can be judged at all
FALSE_ALARMS = 0.01
_AT_ONCE = 64  # resamplings held in memory at a time


@dataclass(frozen=True)
class Drift:
    """How far new crops of a camera lie from its own earlier crops.

    When nothing has changed, ``drift`` reaches ``threshold`` in a share of about ``false_alarms`` of cases (on the
    synthetic street, with 300 reference crops: in 5 to 9 % for 5 %).  ``p_value`` is the share of resamplings that
    drift at least as much; it is never 0.
    """

    camera: str
    crops: int
    drift: float
    threshold: float
    p_value: float
    false_alarms: float

    @property
    def alarm(self) -> bool:
        """Whether the camera drifted."""
        return self.p_value <= self.false_alarms


def group_lookalikes(images: ImageStatistics, identities: Sequence[str] = ()) -> IntArray:
    """Group the images that are not independent: those of one identity, and those that look almost the same.

    Args:
        images: Statistics of N images.
        identities: Their identities, "" where unknown; () means that all are unknown.

    Returns:
        The number of each image's group, (N,) int64.  A chain of images that look alike is one group.
    """
    alike = images.thumbnails @ images.thumbnails.T >= ALIKE
    if identities:
        names = np.array(identities)
        alike |= torch.from_numpy((names[:, None] == names[None]) & (names != "")[:, None])
    group = torch.arange(len(images))
    while True:  # the smallest number spreads over what is linked
        least = torch.where(alike, group[None], len(images)).amin(1).minimum(group)
        if torch.equal(least, group):
            return np.unique(group.numpy(), return_inverse=True)[1].reshape(-1).astype(np.int64)
        group = least


def pool_statistics(images: ImageStatistics, weights: Tensor | None = None) -> Statistics:
    """Pool the statistics (R, S) of R selections of images.

    ``weights`` (R, N) are how often each image counts; by default every image counts once.
    """
    if weights is None:
        weights = torch.ones(1, len(images))
    mass = weights.sum(1)
    share = weights / mass[:, None]
    centre = images.mean.mean(0)
    offsets = images.mean - centre  # small numbers: no cancellation below
    mean = share @ offsets
    var = share @ (images.var + offsets.square()) - mean.square()
    return Statistics(mean + centre, var.clamp_min(0), mass)


def mean_distance(new: Statistics, old: Statistics, widths: Sequence[int]) -> Tensor:
    """Measure how far ``new`` lies from ``old``, each (R, S) or (1, S), averaged over layers of ``widths`` channels."""
    return layer_distances(new, old, widths).mean(0)


def layer_distances(new: Statistics, old: Statistics, widths: Sequence[int]) -> Tensor:
    """Measure how far ``new`` lies from ``old``, each (R, S) or (1, S), in each layer: (L, R)."""
    distances = []
    for mean, var, old_mean, old_var in zip(
        *(torch.split(table, list(widths), 1) for table in (new.mean, new.var, old.mean, old.var)), strict=True
    ):
        squared = (mean - old_mean).square().sum(1) + (var.sqrt() - old_var.sqrt()).square().sum(1)
        distances.append((squared / old_var.sum(1).clamp_min(1e-12)).sqrt())
    return torch.stack(distances)


def effective_size(images: ImageStatistics, groups: IntArray) -> float:
    """Estimate how many independent images the images are worth, 1..N.

    The result is N over the design effect (Kish 1965) of the means: the variance of a mean over whole groups, which is
    the sum over groups of |sum of deviations|^2, over the variance of independent images, with every channel in units
    of its deviation.
    """
    deviation = (images.mean - images.mean.mean(0)) / images.mean.std(0, correction=0).clamp_min(1e-6)
    independent = deviation.square().sum()
    together = torch.zeros(int(groups.max()) + 1, deviation.shape[1])
    together.index_add_(0, torch.from_numpy(groups), deviation)
    effect = float(together.square().sum() / independent) if independent > 0 else float(len(images))
    return min(max(len(images) / max(effect, 1e-12), 1.0), float(len(images)))


def split_half_error(images: ImageStatistics, groups: IntArray, *, halvings: int = HALVINGS, seed: int = 0) -> float:
    """Estimate the error of the statistics of all images as half the mean distance of two halves of the groups.

    The difference of two halves varies four times as much as the mean of both.

    Args:
        images: Statistics of N images.
        groups: The groups of images that are not independent, (N,) int64.
        halvings: How often to halve the groups.
        seed: Seed of the draws.

    Returns:
        The error; NaN for a single group.
    """
    if groups.max() < 1:
        return float("nan")
    random = np.random.default_rng(seed)
    halves = torch.stack([_draw_groups(groups, len(images) // 2, random, whole=True) for _ in range(halvings)])
    pairs = pool_statistics(images, halves), pool_statistics(images, 1 - halves)
    return float(mean_distance(*pairs, images.widths).mean() / 2)


def resample_drift(
    images: ImageStatistics, groups: IntArray, size: int, *, draws: int = DRAWS, seed: int = 0
) -> Tensor:
    """Measure the drift of some of the images from all others, which is what drift is when nothing has changed.

    Whole groups are drawn, the last one cut.  The others are fewer than all images, so the result is rather too large
    than too small.  At most half of the images are drawn, since fewer crops scatter more.

    Args:
        images: Statistics of N images.
        groups: The groups of images that are not independent, (N,) int64.
        size: How many images to draw.
        draws: How often to draw.
        seed: Seed of the draws.

    Returns:
        Drift of each draw, (draws,).

    Raises:
        DataError: There are too few images, or all are one group.
    """
    if len(images) < 2 * FEWEST or groups.max() < 1:
        raise DataError(
            f"drift: expected at least {2 * FEWEST} reference crops of several people, got {len(images)}"
            f" in {int(groups.max()) + 1} groups of look-alikes; add crops of the camera"
        )
    random = np.random.default_rng(seed)
    found = []
    for count in _batches(draws):
        chosen = torch.stack([_draw_groups(groups, min(size, len(images) // 2), random) for _ in range(count)])
        pairs = pool_statistics(images, chosen), pool_statistics(images, 1 - chosen)
        found.append(mean_distance(*pairs, images.widths))
    return torch.cat(found)


def judge_drift(
    camera: str,
    new: ImageStatistics,
    stored: ImageStatistics,
    groups: IntArray,
    *,
    false_alarms: float = FALSE_ALARMS,
    draws: int = DRAWS,
    seed: int = 0,
) -> Drift:
    """Decide whether new images of a camera still fit the statistics that were measured on the stored images.

    Both were run through the same network with the same statistics.  The rate of false alarms holds for new crops that
    are drawn as the stored ones were, at all hours if those were.

    Args:
        camera: The camera.
        new: Statistics of the new images.
        stored: Statistics of the stored images.
        groups: The groups of stored images that are not independent, int64.
        false_alarms: The share of checks that may raise an alarm when nothing has changed.
        draws: How often to resample.
        seed: Seed of the draws.

    Raises:
        ConfigError: A rate that so many resamplings cannot estimate.
        DataError: Too few new or stored images.
    """
    if not 0 < false_alarms < 1 or draws < 1 / false_alarms - 1:
        raise ConfigError(
            f"drift: expected a rate of false alarms between 0 and 1 that {draws} resamplings can estimate, at least"
            f" {1 / (draws + 1):.2g}, got {false_alarms}"
        )
    if len(new) < FEWEST:
        raise DataError(f'camera "{camera}": expected at least {FEWEST} new crops, got {len(new)}; collect more')
    found = float(mean_distance(pool_statistics(new), pool_statistics(stored), stored.widths)[0])
    chance = resample_drift(stored, groups, len(new), draws=draws, seed=seed).sort(descending=True).values
    allowed = int(false_alarms * (draws + 1) + 1e-9) - 1  # so many draws may lie at or above the drift
    p_value = (1 + int((chance >= found).sum())) / (draws + 1)
    return Drift(camera, len(new), found, float(chance[allowed]), p_value, false_alarms)


def _draw_groups(groups: IntArray, size: int, random: np.random.Generator, *, whole: bool = False) -> Tensor:
    """Mark ``size`` images of random groups with 1, (N,) float32; with ``whole`` the last group is not cut."""
    order = random.permutation(int(groups.max()) + 1)
    rows = np.argsort(order.argsort()[groups], kind="stable")  # the images, group by group in that order
    chosen = torch.zeros(len(groups))
    taken = rows[:size]
    if whole:
        last = groups[taken[-1]]
        taken = rows[: size + int(np.count_nonzero(groups[rows[size:]] == last))]
        if len(taken) == len(groups):
            taken = taken[groups[taken] != last]
    chosen[torch.from_numpy(taken)] = 1
    return chosen


def _batches(draws: int) -> Iterator[int]:
    yield from (min(_AT_ONCE, draws - done) for done in range(0, draws, _AT_ONCE))
