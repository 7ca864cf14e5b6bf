"""Crops that take no part in the first epochs of a training, so that they say without labels whether it helps.

A training draws the crops of a cluster together whether the cluster is right or not, so every sign that is read from
the crops of the training rises.  Some clusters are therefore left out at first, three of ten, with the crops without a
cluster that are nearest to them.  Walks between cameras that begin at these crops
(:mod:`reid.adaptation.return_walks`) return more often where the training helps people whom it has not seen, and not
where it only learns its own clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reid.adaptation.clusters import Clustering
from reid.adaptation.contrast import Assignments, BoolArray
from reid.adaptation.return_walks import WalkPlan
from reid.adaptation.site_crops import SiteCrops
from reid.records import FloatArray, IntArray

WATCHED_SHARE = 0.3  # of the persons that the clusters show before any training
FEWEST_PERSONS = 25  # that clusters show; with fewer, those that are left out would say little
WATCHED_EPOCHS = 2  # of training, after which the left out crops join
LEAST_GAIN = 0.03  # by which the share of returning walks must rise
ERRORS = 1.0  # standard errors that the rise must exceed


@dataclass(frozen=True)
class WalkGain:
    """How the share of returning walks changed.

    Attributes:
        before: The share with the network of before, 0..1.
        after: The share with the network of now.
        gain: The mean difference over the watched persons.
        error: The standard error of this mean.
    """

    before: float
    after: float
    gain: float
    error: float

    @property
    def is_enough(self) -> bool:
        """Whether the training helps: the share rose clearly, and by more than chance explains."""
        return self.gain >= LEAST_GAIN and self.gain > ERRORS * self.error


@dataclass(frozen=True, eq=False)
class WatchedCrops:
    """The crops that take no part.

    Attributes:
        persons: (N,) int64, the person of each watched crop, -1 for crops that take part.
        plan: The walks that begin at them.
        before: (S,) float32, the share of the walks of each that return before any training.
    """

    persons: IntArray
    plan: WalkPlan
    before: FloatArray

    @property
    def held(self) -> BoolArray:
        """(N,) bool: the crops that take no part."""
        return self.persons >= 0

    def gain(self, vectors: FloatArray, viewpoints: IntArray) -> WalkGain:
        """Compare the walks of now with those of before.

        Args:
            vectors: (N, D) float32, unit rows, of the network of now.
            viewpoints: (N,) int64, as :func:`viewpoints_of` returns them.
        """
        after = self.plan.returning(vectors, viewpoints)
        known = ~np.isnan(self.before)
        persons, change = self.persons[self.plan.starts][known], (after - self.before)[known]
        means = np.array([change[persons == person].mean() for person in np.unique(persons)], np.float64)
        error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("inf")
        return WalkGain(float(self.before[known].mean()), float(after[known].mean()), float(means.mean()), error)

    def to_state(self) -> dict[str, Any]:
        """Return everything as tensors, for the state of a run."""
        plan: dict[str, Any] = vars(self.plan)
        arrays = {**plan, "persons": self.persons, "before": self.before}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> WatchedCrops | None:
        """Return what :meth:`to_state` returned; None for an empty state."""
        if not state:
            return None
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        plan = WalkPlan(arrays["starts"], arrays["likes"], arrays["routes"])
        return cls(arrays["persons"], plan, arrays["before"])


def choose_watched(
    vectors: FloatArray, found: Clustering, persons: IntArray, crops: SiteCrops, taking_part: BoolArray, seed: int = 0
) -> WatchedCrops | None:
    """Choose the crops that take no part at first.

    Args:
        vectors: (N, D) float32, unit rows, before any training.
        found: Their clusters.
        persons: (K,) int64, the person that each cluster shows.
        crops: The crops.
        taking_part: (N,) bool, crops of the groups that are clustered.
        seed: Decides which persons are left out.

    Returns:
        The crops; None where clusters show too few persons, or no walk can begin.
    """
    shown = np.unique(persons)
    if len(shown) < FEWEST_PERSONS or not crops.has_cameras:
        return None
    chosen = np.random.default_rng((seed, 1)).permutation(shown)[: round(WATCHED_SHARE * len(shown))]
    owners = _owners(found, crops.groups, taking_part)
    own = np.where(owners >= 0, persons[owners], -1)
    watched = np.where(np.isin(own, chosen) & (owners >= 0), own, -1)
    kinds = [name.rpartition(" ")[0] for name in crops.group_names]
    numbers = np.unique(kinds, return_inverse=True)[1].astype(np.int64)
    viewpoints = viewpoints_of(crops)
    plan = WalkPlan.prepare(vectors, viewpoints, np.flatnonzero(watched >= 0), numbers[crops.groups], seed)
    before = plan.returning(vectors, viewpoints)
    return None if np.isnan(before).all() else WatchedCrops(watched, plan, before)


def viewpoints_of(crops: SiteCrops) -> IntArray:
    """Return (N,) int64, the camera and the light and category of each crop as one number."""
    return crops.groups * len(crops.camera_names) + crops.cameras


def without_crops(assigned: Assignments, held: BoolArray) -> Assignments:
    """Return the assignments of the other crops; clusters that have none left are gone.

    Example:
        >>> assigned = Assignments(np.array([0, 1, 1, 2]), np.zeros(3, np.int64), np.arange(3))
        >>> without_crops(assigned, np.array([False, True, True, False])).labels.tolist()
        [0, -1, -1, 1]
    """
    labels = np.where(held, -1, assigned.labels)
    used, numbers = np.unique(labels[labels >= 0], return_inverse=True)
    labels[labels >= 0] = numbers.reshape(-1)
    return Assignments(labels, assigned.groups[used], assigned.persons[used])


def _owners(found: Clustering, groups: IntArray, taking_part: BoolArray) -> IntArray:
    """Return (N,) int64, the cluster of each crop, or that of the most similar crop of its group that has one."""
    owners = found.labels.copy()
    for group in np.unique(groups[taking_part]):
        rows = np.flatnonzero((groups == group) & taking_part)
        members, alone = rows[found.labels[rows] >= 0], rows[found.labels[rows] < 0]
        if len(members) and len(alone):
            owners[alone] = found.labels[members[(found.vectors[alone] @ found.vectors[members].T).argmax(axis=1)]]
    return owners
