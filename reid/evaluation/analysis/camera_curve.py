"""Measure how many crops of a camera are enough, and what a prior is worth.

Scores are measured after calibrating on more and more crops.  This is slow, since every point calibrates and embeds
anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reid.data.loading import Progress
from reid.errors import DataError
from reid.evaluation.analysis.camera_findings import BEFORE, score_methods
from reid.models.calibration import calibrate_checkpoint, own_profiles, replace_domains
from reid.models.checkpoint import Checkpoint
from reid.records import Embeddings, Sample, Split, domain_of
from reid.retrieval.embed import embed

CROPS = (8, 16, 32, 64, 128, 256, 512, 1024)
PRIORS = (8.0, 32.0, 128.0)


@dataclass(frozen=True)
class CurvePoint:
    """Scores after calibrating each camera on at most ``crops`` crops with a prior of ``prior`` images.

    The scores are fractions, averaged over all queries.  0 crops stand for the scores before calibration.
    """

    crops: int
    prior: float
    mAP: float  # noqa: N815 - the field's own spelling
    rank1: float


def score_curve(
    checkpoint: Checkpoint,
    pool: Sequence[Sample],
    test_samples: Sequence[Sample],
    *,
    domain_fields: Sequence[str] = (),
    crops: Sequence[int] = CROPS,
    priors: Sequence[float] = PRIORS,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[CurvePoint]:
    """Score a network after calibrating it on more and more random crops.

    At first no prior is used; then every prior is scored with the smallest number of crops.  A smaller number of crops
    is always a part of a larger one.

    Args:
        checkpoint: The network.
        pool: The crops to calibrate on.
        test_samples: Labelled queries and gallery rows.
        domain_fields: The fields that name a camera; by default those of the network, or else the camera.
        crops: How many crops of each camera to use, in turn; all crops come last.
        priors: The priors to try with the fewest crops.
        workers: Threads that decode images.
        seed: Seed of the draw of crops.
        progress: Called with the number of images done.

    Raises:
        DataError: There are no queries or no gallery.
    """
    for split in (Split.QUERY, Split.GALLERY):
        if not any(sample.split is split for sample in test_samples):
            raise DataError(f'curve: no row of split "{split}"; scores need labelled queries and a gallery')
    fields = tuple(domain_fields) or checkpoint.domain_fields or ("camera",)
    shuffled: dict[str, list[Sample]] = defaultdict(list)
    random = np.random.default_rng(seed)
    for row in random.permutation(len(pool)).tolist():
        shuffled[domain_of(pool[row], fields)].append(pool[row])
    names = sorted(shuffled.keys() | {domain_of(sample, fields) for sample in test_samples})
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
        return _average_scores(count, prior, embed(used, test_samples, workers=workers, progress=progress))

    steps = curve_steps(max(len(rows) for rows in shuffled.values()), crops, priors)
    return [point(count, prior) for count, prior in steps]


def curve_steps(most: int, crops: Sequence[int] = CROPS, priors: Sequence[float] = PRIORS) -> list[tuple[int, float]]:
    """List the crops and the prior of every point where a camera has at most ``most`` crops.

    Example:
        >>> curve_steps(6, (2, 4), (16.0,))
        [(0, 0.0), (2, 0.0), (4, 0.0), (6, 0.0), (2, 16.0)]
    """
    counts = [count for count in crops if count < most] + [most]
    return [(0, 0.0), *((count, 0.0) for count in counts), *((counts[0], prior) for prior in priors)]


def _average_scores(crops: int, prior: float, embeddings: Embeddings) -> CurvePoint:
    metrics = [scores.metrics[BEFORE] for scores in score_methods({BEFORE: embeddings})]
    precision, rank1 = (
        float(np.nanmean(np.concatenate(columns)))
        for columns in ([m.average_precision for m in metrics], [m.rank1 for m in metrics])
    )
    return CurvePoint(crops, prior, precision, rank1)
