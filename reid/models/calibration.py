"""Statistics for the cameras of some samples, measured with the network of a checkpoint.

Joins images and normalization: what is measured and how is :mod:`reid.norm.calibrate`'s business.
Identities are never looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from reid.data.loading import Progress, load_batches
from reid.errors import ConfigError, DataError
from reid.models.checkpoint import Checkpoint
from reid.models.own_statistics import keeps_statistics, own_profiles
from reid.models.runtime import UNCALIBRATED
from reid.norm import Profiles, calibrate, mixes_domains
from reid.records import Sample, domain_of

BATCH_SIZE = 128
PriorFrom = Literal["cameras", "network"]


def calibrate_checkpoint(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    domain_fields: Sequence[str] = (),
    minimum: int = 2,
    prior: float = 0.0,
    prior_from: PriorFrom = "cameras",
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profiles:
    """Profiles of every camera (or whatever ``domain_fields`` names) that ``samples`` show.

    ``domain_fields`` () takes the fields that the checkpoint's own domains are named by, "camera" for a plain one.
    Every batch holds images of one domain, drawn in random order, since neighbours in a list are often
    the same person.  ``prior`` > 0 draws a domain of few images towards the others of its modality, and these
    towards all, as if so many images of them were its own (:meth:`~reid.norm.Profiles.shrunk`); with ``prior_from``
    "network" towards what the network normalizes it with now (:meth:`~reid.norm.Profiles.towards`).  Raises DataError
    for samples without a camera and for a domain with fewer than ``minimum`` images.
    """
    domain_fields = tuple(domain_fields) or checkpoint.domain_fields or ("camera",)
    if checkpoint.domain_fields and domain_fields != checkpoint.domain_fields:
        raise ConfigError(
            f"{checkpoint.source} names its domains by {'/'.join(checkpoint.domain_fields)}, so profiles by"
            f" {'/'.join(domain_fields)} do not fit"
        )
    if checkpoint.runtime:
        raise ConfigError(f"{checkpoint.source}: {UNCALIBRATED}")
    if not keeps_statistics(checkpoint):
        raise ConfigError(
            f"{checkpoint.source}: {checkpoint.spec.backbone} has no BatchNorm, so it keeps no statistics to calibrate;"
            ' center its embeddings per camera instead: "reid embed", then "reid cameras center"'
        )
    groups = _groups(samples, domain_fields, np.random.default_rng(seed))
    domains = sorted(groups)
    if mixes_domains(checkpoint.network):
        batches = _mixed_batches(
            checkpoint, groups, domains, batch_size, workers, np.random.default_rng(seed), progress
        )
    else:
        batches = _batches(checkpoint, groups, domains, batch_size, workers, progress)
    profiles = calibrate(
        checkpoint.network, batches, domains, minimum=minimum, weights=checkpoint.weights, domain_fields=domain_fields
    )
    if prior_from == "network":
        return profiles.towards(own_profiles(checkpoint, domains, domain_fields), prior)
    return profiles.shrunk(prior, {name: str(rows[0].modality) for name, rows in groups.items()})


def _groups(
    samples: Sequence[Sample], domain_fields: Sequence[str], random: np.random.Generator
) -> dict[str, list[Sample]]:
    """The samples of every domain, shuffled."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if "camera" in domain_fields and not sample.camera:
            raise DataError(f"{sample.path}: the camera is empty; calibration needs to know each crop's camera")
        groups[domain_of(sample, domain_fields)].append(sample)
    if not groups:
        raise DataError("calibration: no images; expected unlabelled crops of each camera")
    return {name: [rows[i] for i in random.permutation(len(rows))] for name, rows in groups.items()}


def _mixed_batches(
    checkpoint: Checkpoint,
    groups: Mapping[str, Sequence[Sample]],
    domains: Sequence[str],
    batch_size: int,
    workers: int,
    random: np.random.Generator,
    progress: Progress | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """All domains in random order, for a network in which they share statistics."""
    rows = [(sample, index) for index, name in enumerate(domains) for sample in groups[name]]
    rows = [rows[i] for i in random.permutation(len(rows))]
    even = -(-len(rows) // -(-len(rows) // batch_size))
    labels = torch.tensor([index for _, index in rows])
    done = 0
    for batch in load_batches([s for s, _ in rows], checkpoint.transform, batch_size=even, workers=workers):
        yield batch.images, labels[done : done + len(batch.images)]
        done += len(batch.images)
        if progress is not None:
            progress(len(batch.images))


def _batches(
    checkpoint: Checkpoint,
    groups: Mapping[str, Sequence[Sample]],
    domains: Sequence[str],
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    for index, name in enumerate(domains):
        count = len(groups[name])
        even = -(-count // -(-count // batch_size))  # no small batch at the end: its moments would be poor
        for batch in load_batches(groups[name], checkpoint.transform, batch_size=even, workers=workers):
            yield batch.images, torch.full((len(batch.images),), index)
            if progress is not None:
                progress(len(batch.images))
