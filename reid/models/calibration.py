"""Statistics for the cameras of some samples, measured with the network of a checkpoint.

Joins images and normalization: what is measured and how is :mod:`reid.norm.calibrate`'s business.
Identities are never looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from reid.data.loading import Progress, load_batches
from reid.errors import ConfigError, DataError
from reid.models.checkpoint import Checkpoint
from reid.norm import Profiles, calibrate
from reid.records import Sample, label_of

BATCH_SIZE = 128


def calibrate_checkpoint(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    by: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profiles:
    """Profiles of every camera (or whatever ``by`` names) that ``samples`` show.

    ``by`` () takes the fields that the checkpoint's own domains are named by, "camera" for a plain one.
    Every batch holds images of one domain, drawn in random order, since neighbours in a list are often
    the same person.  Raises DataError for samples without a camera.
    """
    by = tuple(by) or checkpoint.by or ("camera",)
    if checkpoint.by and by != checkpoint.by:
        raise ConfigError(
            f"{checkpoint.source} names its domains by {'/'.join(checkpoint.by)}, so profiles by"
            f" {'/'.join(by)} do not fit"
        )
    groups = _groups(samples, by, np.random.default_rng(seed))
    names = sorted(groups)
    batches = _batches(checkpoint, groups, names, batch_size, workers, progress)
    return calibrate(checkpoint.network, batches, names, weights=checkpoint.weights, by=by)


def _groups(samples: Sequence[Sample], by: Sequence[str], random: np.random.Generator) -> dict[str, list[Sample]]:
    """The samples of every domain, shuffled."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if "camera" in by and not sample.camera:
            raise DataError(f"{sample.path}: the camera is empty; calibration needs to know each crop's camera")
        groups[label_of(sample, by)].append(sample)
    if not groups:
        raise DataError("calibration: no images; expected unlabelled crops of each camera")
    return {name: [rows[i] for i in random.permutation(len(rows))] for name, rows in groups.items()}


def _batches(
    checkpoint: Checkpoint,
    groups: Mapping[str, Sequence[Sample]],
    names: Sequence[str],
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    for index, name in enumerate(names):
        count = len(groups[name])
        even = -(-count // -(-count // batch_size))  # no small batch at the end: its moments would be poor
        for batch in load_batches(groups[name], checkpoint.transform, batch_size=even, workers=workers):
            yield batch.images, torch.full((len(batch.images),), index)
            if progress is not None:
                progress(len(batch.images))
