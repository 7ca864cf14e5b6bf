"""Decide without labels whether an adaptation works: what the clusters look like, and which epoch to keep.

Two signs are read from every clustering of a group: the share of crops that are in a cluster, and how many cameras a
cluster spans.  Their product is what an adaptation should raise.  It falls where wrong crops are drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from reid.records import IntArray

FEWEST_CROPS = 32  # of a group; fewer do not show what belongs together
FEWEST_CLUSTERS = 4  # of a group; with fewer, a contrast between clusters says little
LEAST_CLUSTERED = 0.4  # share of the crops
LEAST_CLUSTERED_AT_FIRST = 0.2  # share of the crops before any training; less cannot show the way
LEAST_SPANNING = 0.5  # share of the clusters that hold crops of two cameras
LEAST_CROPS_A_CAMERA = 2  # of a person in one camera, as the median
LEAST_REPEATED = 0.5  # share of the crops whose most similar crop is of the own camera
TOLERANCE = 0.03  # an epoch whose quality is so much below the best is not kept
PATIENCE = 2  # epochs in a row that may be below the best


@dataclass(frozen=True)
class ClusterFigures:
    """What can be said of the clusters of a group without labels.

    Attributes:
        group: The name of the group, such as "person visible".
        crops: Crops of the group.
        clusters: Clusters in it.
        clustered: Share of the crops that are in a cluster, 0..1.
        spanning: Share of the clusters that hold crops of at least two cameras, 0..1.
        coverage: The mean share of the group's cameras that a cluster holds, 0..1.
        crops_a_camera: The median number of crops of a cluster in a camera that it holds.
        repeated: Share of the crops whose most similar crop, by normalized score, is of the own camera, 0..1; it is
            small where each camera shows a person once.
    """

    group: str
    crops: int
    clusters: int
    clustered: float
    spanning: float
    coverage: float
    crops_a_camera: float
    repeated: float = 1.0

    @property
    def quality(self) -> float:
        """What an adaptation should raise: the share of clustered crops times the coverage of the cameras, 0..1."""
        return self.clustered * self.coverage

    def to_json(self) -> dict[str, object]:
        """Return the figures as numbers and strings, rounded."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def figures_of(labels: IntArray, cameras: IntArray, group: str, repeated: float = 1.0) -> ClusterFigures:
    """Describe the clusters of the crops of a group.

    Args:
        labels: (M,) int64, the cluster of each crop of the group, -1 for none; any other numbers.
        cameras: (M,) int64, the camera of each crop.
        group: The name of the group.
        repeated: Share of the crops whose most similar crop is of the own camera.

    Returns:
        The figures; all 0 where there is no cluster.

    Example:
        >>> figures = figures_of(np.array([5, 5, 5, 7, -1]), np.array([0, 0, 1, 0, 1]), "person visible")
        >>> figures.clusters, figures.clustered, figures.spanning, figures.coverage, figures.crops_a_camera
        (2, 0.8, 0.5, 0.75, 1.0)
    """
    used = labels >= 0
    if not used.any():
        return ClusterFigures(group, len(labels), 0, 0.0, 0.0, 0.0, 0.0, repeated)
    pairs, sizes = np.unique(np.stack([labels[used], cameras[used]], 1), axis=0, return_counts=True)
    _, held = np.unique(pairs[:, 0], return_counts=True)  # cameras of each cluster
    return ClusterFigures(
        group,
        len(labels),
        len(held),
        float(used.mean()),
        float((held > 1).mean()),
        float((held / len(np.unique(cameras))).mean()),
        float(np.median(sizes)),
        repeated,
    )


def impossibility(figures: ClusterFigures, cameras: int) -> str:
    """Say why training on the clusters of a group is impossible, before it begins; "" where it can be tried.

    Args:
        figures: What its clusters look like.
        cameras: How many cameras the group has; 0 where none is known.
    """
    if figures.crops < FEWEST_CROPS:
        return f"{figures.crops} crops are too few, expected at least {FEWEST_CROPS}"
    if cameras == 1:
        return "all crops are of one camera, so no cluster shows what a camera changes"
    if cameras and figures.repeated < LEAST_REPEATED and figures.clustered < LEAST_CLUSTERED:
        return (
            f"{figures.clustered:.0%} of the crops are in clusters, and {figures.repeated:.0%} have their like in the"
            " own camera: each camera shows a person once, or crops of different light are mixed"
        )
    if figures.clustered < LEAST_CLUSTERED_AT_FIRST:
        return f"{figures.clustered:.0%} of the crops are in clusters, expected at least {LEAST_CLUSTERED_AT_FIRST:.0%}"
    if figures.clusters < FEWEST_CLUSTERS:
        return f"the number of clusters of the crops is {figures.clusters}, expected at least {FEWEST_CLUSTERS}"
    return ""


def refusal(figures: ClusterFigures, cameras: int) -> str:
    """Say why a group cannot be adapted to, from its clusters after the first epoch of training; "" where it can.

    Args:
        figures: What its clusters look like.
        cameras: How many cameras the group has; 0 where none is known.
    """
    if impossible := impossibility(figures, cameras):
        return impossible
    if figures.clustered < LEAST_CLUSTERED:
        return f"{figures.clustered:.0%} of the crops are in clusters, expected at least {LEAST_CLUSTERED:.0%}"
    if cameras and figures.spanning < LEAST_SPANNING:
        return (
            f"{figures.spanning:.0%} of the clusters hold crops of two cameras, expected at least"
            f" {LEAST_SPANNING:.0%}: the cameras hardly share people, or each shows a person once"
        )
    if figures.crops_a_camera < LEAST_CROPS_A_CAMERA:
        return (
            f"a cluster holds {figures.crops_a_camera:g} crops of a camera, expected at least"
            f" {LEAST_CROPS_A_CAMERA}: with one crop of a person in each camera, density shows no clusters"
        )
    return ""


class BestEpoch:
    """Choose the epoch to keep: the latest whose quality is within 3 % of the best.

    Example:
        >>> best = BestEpoch()
        >>> [best.keeps(quality) for quality in (0.5, 0.8, 0.79, 0.6, 0.5)]
        [True, True, True, False, False]
        >>> best.has_fallen
        True
    """

    def __init__(self, qualities: Sequence[float] = ()) -> None:
        self._best, self._below = 0.0, 0
        for quality in qualities:
            self.keeps(quality)

    def keeps(self, quality: float) -> bool:
        """Note the quality of one more epoch; return whether this epoch is the one to keep so far."""
        self._best = max(self._best, quality)
        kept = quality >= (1 - TOLERANCE) * self._best
        self._below = 0 if kept else self._below + 1
        return kept

    @property
    def has_fallen(self) -> bool:
        """Whether the last two epochs were both below the best."""
        return self._below >= PATIENCE
