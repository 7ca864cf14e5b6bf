"""Measure how the cameras of some crops are normalized: their statistics, their centers, and what helps them.

:func:`normalize_cameras` measures the levels that it is asked for, or tries them on the crops and chooses
(:mod:`reid.retrieval.normalization_choice`), and returns profiles that every command takes.  It reads no identity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import torch

from reid.data.loading import Progress
from reid.errors import DataError
from reid.models.calibration import calibrate_checkpoint, can_be_calibrated, own_profiles, replace_domains
from reid.models.checkpoint import Checkpoint
from reid.norm import Profiles
from reid.records import Embeddings, FloatArray, IntArray, PriorFrom, Sample, domain_of
from reid.retrieval.centering import camera_means
from reid.retrieval.embed import embed
from reid.retrieval.normalization_choice import (
    AS_IT_IS,
    STATISTICS,
    CameraLevels,
    CandidateVectors,
    LevelsChoice,
    NameArray,
    NormalizationRequest,
    camera_pairs,
    choose_levels,
)
from reid.retrieval.normalization_report import CameraChoice, NormalizationReport, choose_score_norm

FEWEST = 16  # crops of a camera that is compared with others
MOST, MOST_IN_ALL = 512, 6144  # crops of a camera, and of all cameras together, that are compared
MOST_PAIRS = 300  # pairs of cameras that are compared
BLOCK = 8  # crops in a row, by time and name, that may show the same object
HALVES = (0, 1)
Crops = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, eq=False)
class CameraMeasurement:
    """What all measurements of one network share.

    Args:
        checkpoint: The network.
        domain_fields: The fields of a sample that name its camera or other domain.
        prior: How far statistics are shrunk, see :func:`reid.models.calibration.calibrate_checkpoint`.
        prior_from: Toward what they are shrunk.
        workers: Threads that decode images.
        seed: Decides the order of the images.
        progress: Is called with the number of images done.
    """

    checkpoint: Checkpoint
    domain_fields: tuple[str, ...]
    prior: float = 0.0
    prior_from: PriorFrom = "cameras"
    workers: int = 0
    seed: int = 0
    progress: Progress | None = None

    def statistics(self, crops: Crops, minimum: int = 2) -> Profiles:
        """Measure the statistics of each camera."""
        return calibrate_checkpoint(
            self.checkpoint,
            [sample for rows in crops.values() for sample in rows],
            domain_fields=self.domain_fields,
            minimum=minimum,
            prior=self.prior,
            prior_from=self.prior_from,
            workers=self.workers,
            seed=self.seed,
            progress=self.progress,
        )

    def vectors(self, samples: Sequence[Sample], profiles: Profiles | None) -> FloatArray:
        """Embed crops, (N, D), without centers and with the statistics of profiles, if any."""
        network = replace(self.checkpoint, centers=None) if self.checkpoint.centers is not None else self.checkpoint
        if not network.has_statistics:
            network = replace(network, domain_fields=(), domains=())
        network = network if profiles is None or not profiles.mean else network.with_profiles(profiles)
        return embed(network, samples, workers=self.workers, progress=self.progress).vectors

    def own(self, cameras: Sequence[str]) -> Profiles | None:
        """Return the statistics that the network uses for cameras now; None where it has one set for all."""
        if not self.checkpoint.has_statistics:
            return None
        return own_profiles(self.checkpoint, list(cameras), self.domain_fields)


def normalize_cameras(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    request: NormalizationRequest,
    *,
    domain_fields: Sequence[str] = (),
    minimum: int = 2,
    prior: float = 0.0,
    prior_from: PriorFrom = "cameras",
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Profiles, NormalizationReport]:
    """Measure how the cameras of unlabelled crops are to be normalized.

    Args:
        checkpoint: The network.
        samples: The crops.  Their identities are not read.
        request: The levels, or that they are to be chosen.
        domain_fields: The fields that name a camera; by default those of the network, or else the camera.
        minimum: The fewest crops of a camera.
        prior: How far statistics are shrunk, see :func:`reid.models.calibration.calibrate_checkpoint`.
        prior_from: Toward what they are shrunk.
        workers: Threads that decode images.
        seed: Decides the order of the images, and which are compared.
        progress: Is called with the number of images done; :func:`count_images` says how many there are.

    Returns:
        The profiles, and what was chosen and why.

    Raises:
        DataError: There are no crops, a crop has no camera, or a camera has fewer crops than ``minimum``.
        ConfigError: Statistics are asked for and the network keeps none.
    """
    fields = tuple(domain_fields) or checkpoint.domain_fields or ("camera",)
    measurement = CameraMeasurement(checkpoint, fields, prior, prior_from, workers, seed, progress)
    crops = group_crops(samples, fields, minimum)
    if request.is_auto:
        choice = _choose(measurement, crops)
    else:
        reason = f"asked for: {request.levels}"
        choice = LevelsChoice(dict.fromkeys(crops, request.levels), (), float("nan"), reason)
    levels = {name: choice.levels.get(name, AS_IT_IS) for name in sorted(crops)}
    profiles = _measure(measurement, crops, levels)
    counts = {name: len(crops[name]) for name in levels}
    score_norm, score_reason = request.score_norm, "asked for" if request.score_norm else ""
    if request.is_auto:
        score_norm, score_reason = choose_score_norm(counts)
    found = [CameraChoice(name, counts[name], str(levels[name])) for name in levels]
    report = NormalizationReport(tuple(found), choice.candidates, choice.share, choice.reason, score_norm, score_reason)
    summary = report.summary() if request.is_auto else ""
    return replace(profiles, score_norm=score_norm, choice=summary), report


def levels_of(checkpoint: Checkpoint) -> CameraLevels:
    """Return the levels at which a checkpoint normalizes the cameras that it knows."""
    return CameraLevels(checkpoint.has_statistics, checkpoint.centers is not None)


def count_images(samples: Sequence[Sample], request: NormalizationRequest, has_statistics: bool) -> int:
    """Return how many images :func:`normalize_cameras` runs through a network, at the most."""
    total = len(samples)
    if not request.is_auto:
        return total * request.levels.count
    compared = min(total, MOST_IN_ALL)
    return 2 * total + compared * (3 if has_statistics else 1)


def group_crops(samples: Sequence[Sample], domain_fields: Sequence[str], minimum: int) -> dict[str, list[Sample]]:
    """Group crops by camera, in their order.

    Raises:
        DataError: There are no crops, a crop has no camera, or a camera has fewer crops than ``minimum``.
    """
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if "camera" in domain_fields and not sample.camera:
            raise DataError(f"{sample.path}: the camera is empty; calibration needs to know each crop's camera")
        found[domain_of(sample, domain_fields)].append(sample)
    if not found:
        raise DataError("calibration: got no crops; expected unlabelled crops of each camera")
    few = [f"{name} ({len(rows)})" for name, rows in sorted(found.items()) if len(rows) < minimum]
    if few:
        raise DataError(f"calibration: expected at least {minimum} images of each camera, too few of: {', '.join(few)}")
    return dict(found)


def _in_order(crops: Sequence[Sample]) -> list[Sample]:
    """Sort crops by time and name, so that those of one object stand together."""
    return sorted(crops, key=lambda s: (s.time.timestamp() if s.time is not None else 0.0, str(s.path)))


def _choose(measurement: CameraMeasurement, crops: Crops) -> LevelsChoice:
    """Try the levels on the cameras that have enough crops."""
    enough = {name: rows for name, rows in crops.items() if len(rows) >= FEWEST}
    pairs = camera_pairs(list(enough), MOST_PAIRS, measurement.seed)
    if not pairs:
        counts = ", ".join(f"{name} ({len(rows)})" for name, rows in crops.items())
        reason = f"two cameras with {FEWEST} crops or more are needed to compare levels, got {counts}"
        return LevelsChoice({}, (), float("nan"), f"the network stays as it is: {reason}")
    compared = sorted({name for pair in pairs for name in pair})
    candidates = _candidates(measurement, {name: _in_order(enough[name]) for name in compared})
    return choose_levels(candidates, pairs)


@dataclass(frozen=True, eq=False)
class _ComparedCrops:
    """The crops that are compared: their cameras, groups and halves, all (N,)."""

    samples: list[Sample]
    cameras: NameArray
    groups: IntArray
    halves: IntArray

    def of_half(self, half: int) -> tuple[IntArray, list[Sample]]:
        """Return the rows of one half, and their samples."""
        rows = np.flatnonzero(self.halves == half)
        return rows, [self.samples[row] for row in rows.tolist()]


def _blocks(crops: Sequence[Sample]) -> IntArray:
    """Number the crops (N,) of a camera in blocks; blocks of even and of odd numbers are the two halves."""
    size = max(1, min(BLOCK, len(crops) // 4))
    return np.arange(len(crops), dtype=np.int64) // size


def _draw_compared(crops: Crops, seed: int) -> _ComparedCrops:
    """Draw crops of each camera."""
    most = max(FEWEST, min(MOST, MOST_IN_ALL // len(crops)))
    random = np.random.default_rng(seed)
    samples, cameras, blocks = [], [], []
    for number, (name, rows) in enumerate(crops.items()):
        drawn = np.sort(random.permutation(len(rows))[:most])
        samples += [rows[row] for row in drawn.tolist()]
        cameras += [name] * len(drawn)
        blocks.append(np.stack([np.full(len(drawn), number), _blocks(rows)[drawn]], axis=1))
    numbers = np.concatenate(blocks)  # (N, 2): camera, block
    groups = np.unique(numbers, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return _ComparedCrops(samples, np.array(cameras, dtype=np.str_), groups, numbers[:, 1] % 2)


def _candidates(measurement: CameraMeasurement, crops: Crops) -> CandidateVectors:
    """Embed drawn crops by every choice of levels, with statistics and centers of the other half of the crops."""
    compared = _draw_compared(crops, measurement.seed)
    own = measurement.own(list(crops))
    plain = measurement.vectors(compared.samples, own)
    vectors = {AS_IT_IS: plain, CameraLevels(centering=True): _centered_by_halves(plain, compared)}
    if can_be_calibrated(measurement.checkpoint):
        calibrated = np.empty_like(plain)
        for half in HALVES:
            others = {
                name: [row for row, block in zip(rows, _blocks(rows).tolist(), strict=True) if block % 2 != half]
                for name, rows in crops.items()
            }
            measured = measurement.statistics(others)
            rows, samples = compared.of_half(half)
            calibrated[rows] = measurement.vectors(samples, measured if own is None else replace_domains(own, measured))
        vectors[CameraLevels(statistics=True)] = calibrated
        vectors[CameraLevels(True, True)] = _centered_by_halves(calibrated, compared)
    return CandidateVectors(compared.cameras, compared.groups, vectors)


def _centered_by_halves(vectors: FloatArray, compared: _ComparedCrops) -> FloatArray:
    """Center the vectors (N, D) of each camera and half with the mean of the other half."""
    found = vectors.copy()
    for name in np.unique(compared.cameras):
        for half in HALVES:
            rows, others = (
                np.flatnonzero((compared.cameras == name) & (compared.halves == which)) for which in (half, 1 - half)
            )
            if len(others):
                moved = vectors[rows] - vectors[others].mean(axis=0)
                found[rows] = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), np.float32(1e-6))
    return found


def empty_profiles(checkpoint: Checkpoint, domain_fields: Sequence[str], counts: Mapping[str, int]) -> Profiles:
    """Return profiles that leave the network as it is; ``counts`` are the crops of each camera by name."""
    return Profiles(
        tuple(counts),
        tuple(counts.values()),
        {},
        {},
        weights=checkpoint.weights,
        domain_fields=tuple(domain_fields),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        levels=(str(AS_IT_IS),) * len(counts),
    )


def with_centers(profiles: Profiles, means: Mapping[str, FloatArray]) -> Profiles:
    """Add the centers (D,) of some cameras by name to profiles; the embeddings of the others stay as they are."""
    if not means:
        return profiles
    zero = np.zeros_like(next(iter(means.values())))
    centers = torch.from_numpy(np.stack([means.get(name, zero) for name in profiles.domains]))
    levels = tuple(
        str(CameraLevels(STATISTICS in level, name in means))
        for name, level in zip(profiles.domains, profiles.levels, strict=True)
    )
    return replace(profiles, centers=centers, levels=levels)


def _measure(measurement: CameraMeasurement, crops: Crops, levels: Mapping[str, CameraLevels]) -> Profiles:
    """Measure the chosen levels on all crops."""
    checkpoint, fields = measurement.checkpoint, measurement.domain_fields
    profiles = empty_profiles(checkpoint, fields, {name: len(crops[name]) for name in levels})
    names, described = list(profiles.domains), profiles
    calibrated = {name: rows for name, rows in crops.items() if levels[name].statistics}
    if calibrated:
        measured = measurement.statistics(calibrated)
        others = [name for name in names if name not in calibrated]
        profiles = replace_domains(own_profiles(checkpoint, others, fields), measured) if others else measured
    elif checkpoint.domain_fields and checkpoint.has_statistics:
        profiles = own_profiles(checkpoint, names, fields)
    profiles = replace(
        profiles.select(names),
        images=described.images,
        date=described.date,
        levels=tuple(str(CameraLevels(levels[name].statistics)) for name in names),
    )
    centered = [name for name in names if levels[name].centering]
    if not centered:
        return profiles
    samples = [sample for name in centered for sample in crops[name]]
    vectors = measurement.vectors(samples, profiles)
    return with_centers(profiles, camera_means(Embeddings(tuple(samples), vectors, "centers"), fields))
