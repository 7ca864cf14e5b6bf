"""Check whether new crops still look like those that a camera was calibrated on.

The check cannot know whether a change harms a search; it reports that there is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reid.data.loading import Progress
from reid.errors import ConfigError, DataError
from reid.evaluation.analysis.drift import FALSE_ALARMS, FEWEST, Drift, group_lookalikes, judge_drift
from reid.models.calibration import can_be_calibrated
from reid.models.checkpoint import Checkpoint
from reid.models.image_statistics import measure_images
from reid.models.runtime import UNCALIBRATED
from reid.records import Sample, domain_of

MOST = 512  # reference crops of a camera, drawn at random


@dataclass(frozen=True)
class WatchedCamera:
    """The new crops of a camera, and the stored crops to compare them with."""

    camera: str
    new: tuple[Sample, ...]
    stored: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.new) + len(self.stored)


def cameras_to_watch(
    checkpoint: Checkpoint, new: Sequence[Sample], reference: Sequence[Sample], *, seed: int = 0
) -> list[WatchedCamera]:
    """Pair the new crops of each camera with its reference crops.

    Args:
        checkpoint: A network with statistics of each camera.
        new: New crops.
        reference: The crops that the cameras were calibrated on; of each camera ``MOST`` are drawn.
        seed: Seed of the draw.

    Returns:
        The cameras of the new crops, sorted by name.

    Raises:
        ConfigError: The network has no statistics of single cameras.
        DataError: A camera has no reference crops, or too few crops.
    """
    if checkpoint.runtime:
        raise ConfigError(f"{checkpoint.source}: has no statistics to drift from; {UNCALIBRATED}")
    if not can_be_calibrated(checkpoint):
        raise ConfigError(f"{checkpoint.source}: has no BatchNorm, so no statistics that a camera could drift from")
    if not checkpoint.domain_fields or not checkpoint.has_statistics:
        raise ConfigError(f"{checkpoint.source}: these weights have no statistics per camera to drift from;"
                          ' pass --profiles of "reid calibrate"')  # fmt: skip
    random = np.random.default_rng(seed)
    today, before = (
        _group_by_camera(new, checkpoint.domain_fields),
        _group_by_camera(reference, checkpoint.domain_fields),
    )
    missing = sorted(today.keys() - before.keys())
    if missing:
        raise DataError(f"no reference crops of {', '.join(missing)}; name the data these cameras were calibrated on")
    for role, crops, least in (("new", today, FEWEST), ("reference", before, 2 * FEWEST)):
        few = [f"{name} ({len(crops[name])})" for name in sorted(today) if len(crops[name]) < least]
        if few:
            raise DataError(
                f"expected at least {least} {role} crops a camera, got fewer of {', '.join(few)}; collect more"
            )
    found = []
    for name in sorted(today):
        rows = [before[name][i] for i in random.permutation(len(before[name]))[:MOST]]
        found.append(WatchedCamera(name, tuple(today[name]), tuple(rows)))
    return found


def watch(
    checkpoint: Checkpoint,
    cameras: Sequence[WatchedCamera],
    *,
    false_alarms: float = FALSE_ALARMS,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Drift]:
    """Measure the drift of each camera in a network with its stored statistics, as it is used.

    Args:
        checkpoint: The network.
        cameras: What :func:`cameras_to_watch` returns.
        false_alarms: The share of each camera's checks that may raise an alarm when nothing has changed, see
            :func:`reid.evaluation.analysis.drift.judge_drift`.
        workers: Threads that decode images.
        seed: Seed of the draws.
        progress: Called with the number of images done.
    """
    found = []
    for camera in cameras:
        new, stored = (
            measure_images(checkpoint, rows, workers=workers, progress=progress) for rows in (camera.new, camera.stored)
        )
        groups = group_lookalikes(stored, [sample.identity for sample in camera.stored])
        found.append(judge_drift(camera.camera, new, stored, groups, false_alarms=false_alarms, seed=seed))
    return found


def _group_by_camera(samples: Sequence[Sample], domain_fields: Sequence[str]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[domain_of(sample, domain_fields)].append(sample)
    return found
