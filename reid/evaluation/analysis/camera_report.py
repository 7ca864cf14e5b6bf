"""Is it worth it to give these cameras statistics of their own?  Measured without labels, and with them where known.

Without labels: how far a camera's statistics lie from what the network uses now and from the other cameras', how
sure they are, how many independent crops there were, and whether nearest neighbours become less often of the same
camera.  With queries and a gallery: mAP and rank-1 before and after on the same queries, and what each camera
contributes.  Embeddings centered per camera are measured beside it, and in its place where a network has no
BatchNorm.

What unlabelled neighbours cannot tell apart: a camera that attracts strangers, and one person seen twice by it.
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
    Scored,
    change_of_all,
    gains,
    judged,
    neighbours,
    scored,
)
from reid.evaluation.analysis.drift import effective_size, layer_distances, lookalikes, split_half
from reid.models.calibration import (
    calibrate_checkpoint,
    can_be_calibrated,
    own_profiles,
    replace_domains,
)
from reid.models.checkpoint import Checkpoint
from reid.models.image_statistics import measure_images
from reid.norm import Profiles
from reid.norm.statistics import Statistics
from reid.records import Embeddings, FloatArray, IntArray, PriorFrom, Sample, Split, domain_of
from reid.retrieval.centering import FEWEST, camera_means, centered
from reid.retrieval.embed import embed

MOST = 512  # crops of a camera that are resampled and whose neighbours are looked at


@dataclass(frozen=True, eq=False)
class CameraReport:
    """The findings of all cameras.

    ``action`` is what the verdicts speak of: "calibrate", or "center" for a network without BatchNorm.  ``bias`` by
    method: how many times as often as by chance a crop's nearest stranger is of its camera.  ``scores`` is empty
    where no query has an answer.  ``profiles`` has measured statistics for the cameras to calibrate and for the
    others those that the network uses now; None without BatchNorm.
    """

    action: str
    cameras: tuple[CameraFinding, ...]
    bias: Mapping[str, float]
    scores: tuple[Scored, ...]
    profiles: Profiles | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, scores as fractions in 0..1."""
        return {
            "action": self.action,
            "bias": dict(self.bias),
            "cameras": [finding.to_json() for finding in self.cameras],
            "scores": [line.to_json() for line in self.scores],
        }


def camera_report(
    checkpoint: Checkpoint,
    pool: Sequence[Sample],
    asked: Sequence[Sample] = (),
    *,
    domain_fields: Sequence[str] = (),
    prior: float = 0.0,
    prior_from: PriorFrom = "cameras",
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> CameraReport:
    """Measure the cameras of ``pool`` (unlabelled crops) and try what was measured on ``asked`` (queries, gallery).

    ``domain_fields``, ``prior`` and ``prior_from`` as in :func:`reid.models.calibration.calibrate_checkpoint`.
    Identities of the pool, where known, only say which crops are not independent.
    ``progress`` is called with images done, :func:`work` in all.
    Raises DataError where a camera is not named or fewer than two have crops.
    """
    fields = tuple(domain_fields) or checkpoint.domain_fields or ("camera",)
    crops = _crops(pool, asked, fields)
    enough = {name: rows for name, rows in crops.items() if len(rows) >= FEWEST}
    random = np.random.default_rng(seed)
    shown = {name: [rows[i] for i in random.permutation(len(rows))[:MOST]] for name, rows in enough.items()}
    trial = _Trial(checkpoint, None, fields, workers, progress)
    own = measured = None
    if can_be_calibrated(checkpoint):
        own = own_profiles(checkpoint, list(crops), fields)
        rows = [sample for name in enough for sample in crops[name]]
        measured = calibrate_checkpoint(
            checkpoint,
            rows,
            domain_fields=fields,
            prior=prior,
            prior_from=prior_from,
            workers=workers,
            seed=seed,
            progress=progress,
        )
        trial = replace(trial, before=checkpoint.with_profiles(own))
        trial = replace(trial, after=trial.before.with_profiles(measured))
    look = _look(trial, shown)
    findings = [_measured(name, len(rows), look, measured, own) for name, rows in crops.items()]
    findings, bias = neighbours(findings, look.methods, look.labels, look.groups)
    scores: list[Scored] = []
    if any(sample.split is Split.QUERY for sample in asked) and any(s.split is Split.GALLERY for s in asked):
        methods = trial.methods(asked, look.means)
        labels = [domain_of(sample, fields) for sample in asked]
        scores = scored(methods)
        findings = gains(findings, methods[BEFORE], list(methods.values())[-1], labels)
    action, total = CENTER if own is None else CALIBRATE, change_of_all(scores)
    findings = [judged(finding, action, total) for finding in findings]
    return CameraReport(action, tuple(findings), bias, tuple(scores), _recommended(findings, own, measured))


def work(pool: Sequence[Sample], asked: Sequence[Sample], domain_fields: Sequence[str], statistics: bool) -> int:
    """How many images :func:`camera_report` runs through a network."""
    crops = [len(rows) for rows in _crops(pool, asked, tuple(domain_fields)).values() if len(rows) >= FEWEST]
    looked = sum(min(count, MOST) for count in crops)
    return (sum(crops) if statistics else 0) + (1 + statistics) * (looked + len(asked))


def _crops(pool: Sequence[Sample], asked: Sequence[Sample], domain_fields: Sequence[str]) -> dict[str, list[Sample]]:
    """The crops of every camera, also of those that only ``asked`` shows, by sorted name."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for number, sample in enumerate((*pool, *asked)):
        if "camera" in domain_fields and not sample.camera:
            raise DataError(f"{sample.path}: the camera is empty; a report on cameras needs to know each crop's camera")
        found[domain_of(sample, domain_fields)] += [sample] if number < len(pool) else []
    if sum(len(rows) >= FEWEST for rows in found.values()) < 2:
        few = ", ".join(f"{name} ({len(rows)})" for name, rows in sorted(found.items()))
        raise DataError(f"cameras: expected two with {FEWEST} crops or more, to compare them; got {few or 'none'}")
    return dict(sorted(found.items()))


@dataclass(frozen=True, eq=False)
class _Trial:
    """A network that knows all cameras by its own statistics, and by measured ones where it has any."""

    before: Checkpoint
    after: Checkpoint | None
    domain_fields: tuple[str, ...]
    workers: int
    progress: Progress | None

    def embed(self, checkpoint: Checkpoint, samples: Sequence[Sample]) -> Embeddings:
        return embed(checkpoint, samples, workers=self.workers, progress=self.progress)

    def methods(self, samples: Sequence[Sample], means: Mapping[str, FloatArray]) -> dict[str, Embeddings]:
        """The samples embedded by each method, the one to be judged last; cameras without a mean are not moved."""
        before = self.embed(self.before, samples)
        found = {BEFORE: before, CENTERED: _centered(before, means, self.domain_fields)}
        if self.after is not None:
            found[CALIBRATED] = self.embed(self.after, samples)
        return found


@dataclass(frozen=True, eq=False)
class _CameraView:
    """What the crops that are looked at show, camera after camera."""

    methods: Mapping[str, Embeddings]
    labels: tuple[str, ...]
    groups: IntArray
    means: Mapping[str, FloatArray]
    stability: Mapping[str, tuple[int, float, float]]  # crops looked at, effective ones, error


def _look(trial: _Trial, shown: Mapping[str, Sequence[Sample]]) -> _CameraView:
    """Embed them before and after; a camera at a time, so that the moments of one camera only are in memory."""
    samples = [sample for rows in shown.values() for sample in rows]
    labels = tuple(name for name, rows in shown.items() for _ in rows)
    before = trial.embed(trial.before, samples)
    means = camera_means(before, trial.domain_fields)
    methods = {BEFORE: before, CENTERED: _centered(before, means, trial.domain_fields)}
    alike: list[str] = []
    vectors: list[FloatArray] = []
    stability = {}
    for name, rows in shown.items():
        who = [sample.identity for sample in rows]
        if trial.after is None:
            alike += [
                f"{sample.category}/{sample.identity}" if sample.identity else str(sample.path) for sample in rows
            ]
            continue
        images = measure_images(trial.after, rows, workers=trial.workers, progress=trial.progress)
        groups = lookalikes(images, who)
        stability[name] = (len(rows), effective_size(images, groups), split_half(images, groups))
        vectors.append(images.vectors.numpy())
        alike += list(_strangers(rows, name, groups))
    if trial.after is not None:
        methods[CALIBRATED] = Embeddings(before.samples, np.concatenate(vectors), trial.after.fingerprint)
    strangers = np.unique(alike, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return _CameraView(methods, labels, strangers, means, stability)


def _strangers(rows: Sequence[Sample], camera: str, groups: IntArray) -> Iterator[str]:
    """One name for all crops of an identity, whatever the camera; else for the look-alikes of one camera."""
    for sample, group in zip(rows, groups.tolist(), strict=True):
        yield f"{sample.category}/{sample.identity}" if sample.identity else f"{camera} {group}"


def _centered(embeddings: Embeddings, means: Mapping[str, FloatArray], domain_fields: Sequence[str]) -> Embeddings:
    nothing = np.zeros(embeddings.vectors.shape[1], np.float32)
    names = {domain_of(sample, domain_fields) for sample in embeddings.samples}
    return centered(embeddings, {name: means.get(name, nothing) for name in names}, domain_fields)


def _measured(
    name: str, crops: int, look: _CameraView, measured: Profiles | None, own: Profiles | None
) -> CameraFinding:
    """What the statistics say of a camera; what was seen on some of its crops is carried over to all."""
    if name not in look.means:
        return CameraFinding(name, crops)
    if measured is None or own is None:
        return CameraFinding(name, crops, effective=float(crops))
    seen, effective, error = look.stability[name]
    layers = _gap(name, measured)
    return CameraFinding(
        name,
        crops,
        effective * crops / seen,
        measured.select([name]).drift(own)[name],
        float(np.mean(list(layers.values()))),
        error * (seen / crops) ** 0.5,
        layers,
    )


def _gap(name: str, measured: Profiles) -> dict[str, float]:
    """By layer, how far a camera's statistics lie from those of all other cameras together, each with equal weight."""
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


def _recommended(findings: Sequence[CameraFinding], own: Profiles | None, measured: Profiles | None) -> Profiles | None:
    """Measured statistics for the cameras to calibrate, for the others what the network uses now."""
    if own is None or measured is None:
        return None
    chosen = [finding.camera for finding in findings if finding.verdict == CALIBRATE]
    return replace_domains(own, measured.select(chosen)) if chosen else own
