"""Measure whether it is worth it to give cameras statistics of their own.

Without labels, the report measures how far a camera's statistics lie from those that the network uses now and from
those of the other cameras, how certain they are, how many independent crops there were, and whether nearest neighbours
become less often crops of the same camera.  With queries and a gallery it also measures mAP and rank-1 before and after
on the same queries, and what each camera contributes.  Centered embeddings are measured as well; where a network
has no BatchNorm, they are measured instead.

Unlabelled neighbours cannot distinguish a camera that attracts other identities from a camera that recorded one person
twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from reid.data.loading import Progress
from reid.errors import DataError
from reid.evaluation.analysis.camera_findings import (
    BEFORE,
    CALIBRATE,
    CALIBRATED,
    CENTER,
    CENTERED,
    CameraFinding,
    MethodScores,
    add_gains,
    add_neighbours,
    change_of_all_queries,
    score_methods,
    with_verdict,
)
from reid.evaluation.analysis.drift import effective_size, group_lookalikes, layer_distances, split_half_error
from reid.models.calibration import calibrate_checkpoint, can_be_calibrated, own_profiles, replace_domains
from reid.models.checkpoint import Checkpoint
from reid.models.image_statistics import measure_images
from reid.norm import Profiles
from reid.norm.statistics import Statistics
from reid.records import Embeddings, FloatArray, IntArray, PriorFrom, Sample, Split, domain_of
from reid.retrieval.camera_normalization import empty_profiles, with_centers
from reid.retrieval.centering import FEWEST, camera_means, centered
from reid.retrieval.embed import embed

MOST = 512  # crops of a camera that are resampled and whose neighbours are looked at


@dataclass(frozen=True, eq=False)
class CameraReport:
    """The findings of all cameras.

    Attributes:
        action: What the verdicts recommend: "calibrate", or "center" for a network without BatchNorm.
        cameras: One finding for each camera.
        bias: How many times as often as by chance a crop's nearest crop of another identity is from its camera, by
            method.
        scores: Scores before and after; empty where no query has a right answer.
        profiles: Measured statistics for the cameras to calibrate, and for the others those that the network uses
            now; without BatchNorm the centers of the cameras to center.
    """

    action: str
    cameras: tuple[CameraFinding, ...]
    bias: Mapping[str, float]
    scores: tuple[MethodScores, ...]
    profiles: Profiles

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; scores are fractions in 0..1."""
        return {
            "action": self.action,
            "bias": dict(self.bias),
            "cameras": [finding.to_json() for finding in self.cameras],
            "scores": [one.to_json() for one in self.scores],
        }


def camera_report(
    checkpoint: Checkpoint,
    pool: Sequence[Sample],
    test_samples: Sequence[Sample] = (),
    *,
    domain_fields: Sequence[str] = (),
    prior: float = 0.0,
    prior_from: PriorFrom = "cameras",
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> CameraReport:
    """Measure the cameras of unlabelled crops, and test the measured statistics on queries and a gallery.

    Args:
        checkpoint: The network.
        pool: The crops to measure.  Identities, where known, only tell which crops are not independent.
        test_samples: Labelled queries and gallery rows; () for none.
        domain_fields: The fields that name a camera; by default those of the network, or else the camera.
        prior: How strongly to shrink each camera's statistics, see
            :func:`reid.models.calibration.calibrate_checkpoint`.
        prior_from: Toward what to shrink them.
        workers: Threads that decode images.
        seed: Seed of the draws.
        progress: Called with the number of images done; :func:`count_images` says how many there are.

    Raises:
        DataError: A crop has no camera, or fewer than two cameras have enough crops.
    """
    fields = tuple(domain_fields) or checkpoint.domain_fields or ("camera",)
    crops = _crops_by_camera(pool, test_samples, fields)
    enough = {name: rows for name, rows in crops.items() if len(rows) >= FEWEST}
    random = np.random.default_rng(seed)
    drawn = {name: [rows[i] for i in random.permutation(len(rows))[:MOST]] for name, rows in enough.items()}
    networks = _Networks(checkpoint, None, fields, workers, progress)
    own = measured = None
    if can_be_calibrated(checkpoint):
        own = own_profiles(checkpoint, list(crops), fields)
        measured = calibrate_checkpoint(
            checkpoint,
            [sample for name in enough for sample in crops[name]],
            domain_fields=fields,
            prior=prior,
            prior_from=prior_from,
            workers=workers,
            seed=seed,
            progress=progress,
        )
        networks = replace(networks, before=checkpoint.with_profiles(own))
        networks = replace(networks, after=networks.before.with_profiles(measured))
    observed = _observe(networks, drawn)
    findings = [_statistics_of_camera(name, len(rows), observed, measured, own) for name, rows in crops.items()]
    findings, bias = add_neighbours(findings, observed.methods, observed.cameras, observed.identity_codes)
    scores: list[MethodScores] = []
    if {Split.QUERY, Split.GALLERY} <= {sample.split for sample in test_samples}:
        methods = networks.embed_by_methods(test_samples, observed.means)
        cameras = [domain_of(sample, fields) for sample in test_samples]
        scores = score_methods(methods)
        findings = add_gains(findings, methods[BEFORE], list(methods.values())[-1], cameras)
    action, total = CENTER if own is None else CALIBRATE, change_of_all_queries(scores)
    findings = [with_verdict(finding, action, total) for finding in findings]
    chosen = [finding.camera for finding in findings if finding.verdict == action]
    if own is not None and measured is not None:
        profiles = replace_domains(own, measured.select(chosen)) if chosen else own
    else:
        empty = empty_profiles(checkpoint, fields, {name: len(rows) for name, rows in crops.items()})
        profiles = with_centers(empty, {name: observed.means[name] for name in chosen})
    return CameraReport(action, tuple(findings), bias, tuple(scores), profiles)


def count_images(
    pool: Sequence[Sample], test_samples: Sequence[Sample], domain_fields: Sequence[str], statistics: bool
) -> int:
    """Count the images that :func:`camera_report` runs through a network.

    ``statistics``: whether the network keeps statistics that can be measured.
    """
    by_camera = _crops_by_camera(pool, test_samples, tuple(domain_fields))
    crops = [len(rows) for rows in by_camera.values() if len(rows) >= FEWEST]
    drawn = sum(min(count, MOST) for count in crops)
    return (sum(crops) if statistics else 0) + (1 + statistics) * (drawn + len(test_samples))


def _crops_by_camera(
    pool: Sequence[Sample], test_samples: Sequence[Sample], domain_fields: Sequence[str]
) -> dict[str, list[Sample]]:
    """Group the crops of the pool by camera, sorted by name; cameras of the test samples only have no crops."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for number, sample in enumerate((*pool, *test_samples)):
        if "camera" in domain_fields and not sample.camera:
            raise DataError(f"{sample.path}: the camera is empty; a report on cameras needs to know each crop's camera")
        found[domain_of(sample, domain_fields)] += [sample] if number < len(pool) else []
    if sum(len(rows) >= FEWEST for rows in found.values()) < 2:
        few = ", ".join(f"{name} ({len(rows)})" for name, rows in sorted(found.items()))
        raise DataError(f"cameras: expected two with {FEWEST} crops or more, to compare them; got {few or 'none'}")
    return dict(sorted(found.items()))


@dataclass(frozen=True, eq=False)
class _Networks:
    """A network that knows all cameras by its own statistics, and one with measured statistics if it keeps any."""

    before: Checkpoint
    after: Checkpoint | None
    domain_fields: tuple[str, ...]
    workers: int
    progress: Progress | None

    def embed(self, checkpoint: Checkpoint, samples: Sequence[Sample]) -> Embeddings:
        return embed(checkpoint, samples, workers=self.workers, progress=self.progress)

    def embed_by_methods(self, samples: Sequence[Sample], means: Mapping[str, FloatArray]) -> dict[str, Embeddings]:
        """Embed the samples by each method, the one to judge last; a camera without a mean is not centered."""
        before = self.embed(self.before, samples)
        found = {BEFORE: before, CENTERED: _center(before, means, self.domain_fields)}
        if self.after is not None:
            found[CALIBRATED] = self.embed(self.after, samples)
        return found


@dataclass(frozen=True, eq=False)
class _Observations:
    """What was observed on the drawn crops, camera after camera.

    ``stability`` holds for each camera the number of drawn crops, of independent ones, and the error of the statistics.
    """

    methods: Mapping[str, Embeddings]
    cameras: tuple[str, ...]
    identity_codes: IntArray
    means: Mapping[str, FloatArray]
    stability: Mapping[str, tuple[int, float, float]]


def _observe(networks: _Networks, drawn: Mapping[str, Sequence[Sample]]) -> _Observations:
    """Embed the drawn crops before and after; one camera at a time, to hold the moments of one camera in memory."""
    samples = [sample for rows in drawn.values() for sample in rows]
    cameras = tuple(name for name, rows in drawn.items() for _ in rows)
    before = networks.embed(networks.before, samples)
    means = camera_means(before, networks.domain_fields)
    methods = {BEFORE: before, CENTERED: _center(before, means, networks.domain_fields)}
    identities: list[str] = []
    vectors: list[FloatArray] = []
    stability = {}
    for name, rows in drawn.items():
        if networks.after is None:
            identities += [
                f"{sample.category}/{sample.identity}" if sample.identity else str(sample.path) for sample in rows
            ]
            continue
        images = measure_images(networks.after, rows, workers=networks.workers, progress=networks.progress)
        groups = group_lookalikes(images, [sample.identity for sample in rows])
        stability[name] = (len(rows), effective_size(images, groups), split_half_error(images, groups))
        vectors.append(images.vectors.numpy())
        identities += list(_identity_names(rows, name, groups))
    if networks.after is not None:
        methods[CALIBRATED] = Embeddings(before.samples, np.concatenate(vectors), networks.after.fingerprint)
    codes = np.unique(identities, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return _Observations(methods, cameras, codes, means, stability)


def _identity_names(rows: Sequence[Sample], camera: str, groups: IntArray) -> Iterator[str]:
    """Name the identity of each crop; where it is unknown, the group of look-alikes of the camera."""
    for sample, group in zip(rows, groups.tolist(), strict=True):
        yield f"{sample.category}/{sample.identity}" if sample.identity else f"{camera} {group}"


def _center(embeddings: Embeddings, means: Mapping[str, FloatArray], domain_fields: Sequence[str]) -> Embeddings:
    zero = np.zeros(embeddings.vectors.shape[1], np.float32)
    names = {domain_of(sample, domain_fields) for sample in embeddings.samples}
    return centered(embeddings, {name: means.get(name, zero) for name in names}, domain_fields)


def _statistics_of_camera(
    name: str, crops: int, observed: _Observations, measured: Profiles | None, own: Profiles | None
) -> CameraFinding:
    """Describe the statistics of a camera; what was observed on some of its crops is extended to all of them."""
    if name not in observed.means:
        return CameraFinding(name, crops)
    if measured is None or own is None:
        return CameraFinding(name, crops, effective=float(crops))
    drawn, effective, error = observed.stability[name]
    layers = _gaps(name, measured)
    return CameraFinding(
        name,
        crops,
        effective * crops / drawn,
        measured.select([name]).drift(own)[name],
        float(np.mean(list(layers.values()))),
        error * (drawn / crops) ** 0.5,
        layers,
    )


def _gaps(name: str, measured: Profiles) -> dict[str, float]:
    """Measure in each layer how far a camera lies from all other cameras together, each with equal weight."""
    others = [other for other in measured.domains if other != name]
    if not others:
        return {}
    found = {}
    for layer in measured.mean:
        ours, theirs = (
            Statistics(p.mean[layer], p.var[layer], torch.ones(len(p.domains)))
            for p in (measured.select([name]), measured.select(others))
        )
        found[layer] = float(layer_distances(ours, theirs.merge_all(), [ours.mean.shape[1]])[0, 0])
    return found
