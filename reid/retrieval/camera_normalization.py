"""Measure how the cameras of some crops are normalized: their statistics, their centers, and what helps them.

:func:`normalize_cameras` measures the levels that it is asked for, or tries them on the crops and chooses
(:mod:`reid.retrieval.normalization_choice`), and returns profiles that every command takes.  It reads no identity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch

from reid.data.loading import Progress
from reid.errors import DataError
from reid.models.calibration import can_be_calibrated, own_profiles, replace_domains
from reid.models.checkpoint import Checkpoint
from reid.norm import Profiles
from reid.norm.site_cohort import SiteCohort
from reid.records import Embeddings, FloatArray, PriorFrom, Sample, domain_of
from reid.retrieval.camera_measurement import CameraMeasurement, Crops
from reid.retrieval.centering import camera_means
from reid.retrieval.cohort_rows import CohortRows, cohort_camera
from reid.retrieval.embed import embed
from reid.retrieval.kept_site import site_rows
from reid.retrieval.normalization_candidates import (
    FEWEST,
    MOST_IN_ALL,
    candidate_vectors,
    draw_compared,
    vectors_by_halves,
)
from reid.retrieval.normalization_choice import (
    AS_IT_IS,
    AUTO,
    SCORE_LEVELS,
    STATISTICS,
    CameraLevels,
    LevelsChoice,
    NormalizationRequest,
    choose_levels,
    parse_normalization,
)
from reid.retrieval.normalization_report import CameraChoice, NormalizationReport, choose_score_norm

MOST_OF_COHORT = 256  # crops of a camera whose embeddings the profiles keep


def normalize_cameras(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    request: NormalizationRequest | str = AUTO,
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
        request: The levels, as :func:`~reid.retrieval.normalization_choice.parse_normalization` reads them: "auto",
            "none", or several joined by "+".
        domain_fields: The fields that name a camera; by default those of the network, or else the camera.
        minimum: The fewest crops of a camera.
        prior: How far statistics are shrunk, see :func:`reid.models.calibration.calibrate_checkpoint`.
        prior_from: Toward what they are shrunk.
        workers: Threads that decode images.
        seed: Decides the order of the images, and which are compared.
        progress: Is called with the number of images done; :func:`count_images` says how many there are.

    Returns:
        The profiles, for :meth:`~reid.models.checkpoint.Checkpoint.with_profiles`, and what was chosen and why.

    Raises:
        DataError: There are no crops, a crop has no camera, or a camera has fewer crops than ``minimum``.
        ConfigError: Statistics are asked for and the network keeps none.
    """
    request = parse_normalization(request) if isinstance(request, str) else request
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
    profiles = replace(profiles, score_norm=score_norm, choice=summary)
    return replace(profiles, cohort=_measure_cohort(measurement, crops, profiles)), report


def cohort_rows_of(checkpoint: Checkpoint) -> CohortRows | None:
    """Return the cohort that the profiles of a network hold, for normalized scores; None without."""
    cohort = checkpoint.cohort
    if cohort is None:
        return None
    return site_rows(np.array(cohort.cameras, np.str_), cohort.vectors.numpy().astype(np.float32))


def levels_of(checkpoint: Checkpoint) -> CameraLevels:
    """Return the levels at which a checkpoint normalizes the cameras that it knows."""
    return CameraLevels(checkpoint.has_statistics, checkpoint.centers is not None)


def count_images(samples: Sequence[Sample], request: NormalizationRequest, has_statistics: bool) -> int:
    """Return how many images :func:`normalize_cameras` runs through a network, at the most."""
    total = len(samples)
    if not request.is_auto:
        return total * (request.levels.count + (request.score_norm in SCORE_LEVELS))
    compared = min(total, MOST_IN_ALL)
    return 3 * total + compared * (3 if has_statistics else 1)


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


def _choose(measurement: CameraMeasurement, crops: Crops) -> LevelsChoice:
    """Try the levels on the cameras that have enough crops."""
    compared = draw_compared(crops, measurement.seed)
    if not compared.pairs:
        counts = ", ".join(f"{name} ({len(rows)})" for name, rows in crops.items())
        reason = f"two cameras with {FEWEST} crops or more are needed to compare levels, got {counts}"
        return LevelsChoice({}, (), float("nan"), f"the network stays as it is: {reason}")
    own = measurement.own(list(compared.crops))
    plain = measurement.vectors(compared.samples, own)
    calibrated = None
    if can_be_calibrated(measurement.checkpoint):
        calibrated = vectors_by_halves(measurement, compared, own)
    return choose_levels(candidate_vectors(compared, plain, calibrated), compared.pairs)


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


def _measure_cohort(measurement: CameraMeasurement, crops: Crops, profiles: Profiles) -> SiteCohort | None:
    """Embed drawn crops of each camera as the profiles ask; None where scores are not to be normalized."""
    if profiles.score_norm not in SCORE_LEVELS:
        return None
    random = np.random.default_rng(measurement.seed)
    samples, domains = [], []
    for name in profiles.domains:
        drawn = np.sort(random.permutation(len(crops[name]))[:MOST_OF_COHORT])
        samples += [crops[name][row] for row in drawn.tolist()]
        domains += [name] * len(drawn)
    network = measurement.checkpoint.with_profiles(profiles)
    vectors = embed(network, samples, workers=measurement.workers, progress=measurement.progress).vectors
    cameras = tuple(cohort_camera(sample) for sample in samples)
    return SiteCohort(tuple(domains), cameras, torch.from_numpy(vectors))


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
