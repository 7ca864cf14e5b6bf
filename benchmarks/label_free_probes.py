"""The probes of benchmarks/label_free.py: what the stages of networks know of cameras and of people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from label_free_measure import ADAPTED, CALIBRATED, Job, Measurement

from reid.evaluation.analysis.probes import EMBEDDING, probe_features, probe_network
from reid.models.checkpoint import Checkpoint
from reid.records import FloatArray, Sample
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.embed import embed
from reid.retrieval.score_normalization import normalize_scores

ASKED = 48  # people
SCORES = {"scores": "none", "scores, csls": "csls"}  # level -> normalization of the scores with the pool
PROBES = (
    *(("shipped", level) for level in ("as it is", "calibrated", "both", "adapted", *SCORES)),
    *(("small, BN", level) for level in ("as it is", "calibrated")),
    *(("small, camera BN", level) for level in ("as it is", "calibrated")),
)


def measure_probe(measurement: Measurement, job: Job) -> list[dict[str, object]]:
    """Probe the network of a job on people who took no part; [] where it is not adapted yet."""
    place = measurement.places[job.place]
    samples = asked_crops(place.scored)
    if job.level == ADAPTED:
        whole = Job(job.place.removesuffix(" visible"), job.network, ADAPTED, job.seed)
        if not measurement.file_of(whole).is_file():
            return []
        job = whole
    if job.level in SCORES:
        checkpoint, _ = measurement.prepared(Job(job.place, job.network, CALIBRATED))
        features = scores_with(checkpoint, samples, place.pool, SCORES[job.level])
        return [probe_features("person visible", EMBEDDING, features, samples).to_json()]
    checkpoint, _ = measurement.prepared(job)
    return [probe.to_json() for probe in probe_network(checkpoint, samples)]


def asked_crops(scored: Sequence[Sample]) -> list[Sample]:
    """The crops of the first people who are scored, each image once."""
    people = set(sorted({sample.identity for sample in scored})[:ASKED])
    return list({sample.path: sample for sample in scored if sample.identity in people}.values())


def scores_with(checkpoint: Checkpoint, samples: Sequence[Sample], pool: Sequence[Sample], norm: str) -> FloatArray:
    """The scores of crops with those of the pool, (N, M), in the place of features."""
    sides: list[Any] = [embed(checkpoint, rows) for rows in (samples, pool)]
    if norm == "none":
        return np.asarray(sides[0].vectors @ sides[1].vectors.T, np.float32)
    rows = [CohortRows.of_samples(side.samples, side.vectors) for side in sides]
    normalized = normalize_scores(rows[0], rows[1], norm, cohort=rows[1])
    return np.asarray(normalized(0, len(samples)), np.float32)
