"""How many crops of a camera are enough, and what a prior is worth: scores after calibrating on ever more crops.

Slow: every point calibrates and embeds anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reid.data.loading import Progress
from reid.errors import DataError
from reid.evaluation.analysis.camera_findings import BEFORE, scored
from reid.models.calibration import calibrate_checkpoint, own_profiles, replace_domains
from reid.models.checkpoint import Checkpoint
from reid.records import Embeddings, Sample, Split, domain_of
from reid.retrieval.embed import embed

CROPS = (8, 16, 32, 64, 128, 256, 512, 1024)
PRIORS = (8.0, 32.0, 128.0)


@dataclass(frozen=True)
class CurvePoint:
    """Scores, fractions averaged over all queries, where each camera had ``crops`` at most and a prior of ``prior``
    images; 0 crops: before calibration."""

    crops: int
    prior: float
    mAP: float  # noqa: N815 - the field's own spelling
    rank1: float


def score_curve(
    checkpoint: Checkpoint,
    pool: Sequence[Sample],
    asked: Sequence[Sample],
    *,
    domain_fields: Sequence[str] = (),
    crops: Sequence[int] = CROPS,
    priors: Sequence[float] = PRIORS,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[CurvePoint]:
    """Points for ever more random crops without a prior, up to all there are; then the fewest with each prior.

    Fewer crops are always among more.  Raises DataError without queries and a gallery.
    """
    for split in (Split.QUERY, Split.GALLERY):
        if not any(sample.split is split for sample in asked):
            raise DataError(f'curve: no row of split "{split}"; scores need labelled queries and a gallery')
    fields = tuple(domain_fields) or checkpoint.domain_fields or ("camera",)
    shuffled: dict[str, list[Sample]] = defaultdict(list)
    random = np.random.default_rng(seed)
    for row in random.permutation(len(pool)).tolist():
        shuffled[domain_of(pool[row], fields)].append(pool[row])
    names = sorted(shuffled.keys() | {domain_of(sample, fields) for sample in asked})
    own = own_profiles(checkpoint, names, fields)
    before = checkpoint.with_profiles(own)

    def point(count: int, prior: float) -> CurvePoint:
        used = before
        if count:
            rows = [sample for name in sorted(shuffled) for sample in shuffled[name][:count]]
            found = calibrate_checkpoint(
                checkpoint, rows, domain_fields=fields, prior=prior, workers=workers, seed=seed
            )
            used = checkpoint.with_profiles(replace_domains(own, found))
        return _point(count, prior, embed(used, asked, workers=workers, progress=progress))

    steps = curve_steps(max(len(rows) for rows in shuffled.values()), crops, priors)
    return [point(count, prior) for count, prior in steps]


def curve_steps(most: int, crops: Sequence[int] = CROPS, priors: Sequence[float] = PRIORS) -> list[tuple[int, float]]:
    """(crops, prior) of every point where a camera has ``most`` crops."""
    counts = [count for count in crops if count < most] + [most]
    return [(0, 0.0), *((count, 0.0) for count in counts), *((counts[0], prior) for prior in priors)]


def _point(crops: int, prior: float, embeddings: Embeddings) -> CurvePoint:
    metrics = [line.metrics[BEFORE] for line in scored({BEFORE: embeddings})]
    precision, rank1 = (
        float(np.nanmean(np.concatenate(columns)))
        for columns in ([m.average_precision for m in metrics], [m.rank1 for m in metrics])
    )
    return CurvePoint(crops, prior, precision, rank1)
