"""Profiles for the cameras of some samples, measured with the network of a checkpoint.

:mod:`reid.norm.calibrate` measures the statistics; this module loads the images for it, one domain at a time, and
combines the profiles that it returns.  Nothing here reads identities.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from reid.data.loading import ImageChange, Progress, load_batches, readable_rows
from reid.errors import ConfigError, DataError
from reid.models.checkpoint import Checkpoint
from reid.models.freed_memory import freed_memory_kept
from reid.models.runtime import UNCALIBRATED
from reid.norm import Profiles, calibrate, camera_batchnorm, convert_norm, domains_of, mixes_domains
from reid.norm.convert import PLAIN_NORMS, NormLayer, norm_layers, take_rows
from reid.norm.domain_policy import FUSED_NORMS
from reid.norm.domain_whitening import DomainWhitening
from reid.norm.profile_centers import replace_centers
from reid.norm.site_cohort import join_cohorts
from reid.records import PriorFrom, Sample, domain_of

BATCH_SIZE = 128
Groups = Mapping[str, Sequence[Sample]]  # the samples of each domain, by its name


def can_be_calibrated(checkpoint: Checkpoint) -> bool:
    """Return whether the network has BatchNorm, plain or converted, and so statistics to calibrate.

    A backbone with LayerNorm has none, and neither has a model that another program runs.
    """
    norms = (*PLAIN_NORMS, NormLayer)
    return any(
        isinstance(module, norms) or type(module).__name__ in FUSED_NORMS for module in checkpoint.network.modules()
    )


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
    change: ImageChange | None = None,
) -> Profiles:
    """Measure profiles of every camera, or other domain, of some samples.

    Every batch holds images of one domain in random order, because neighbours in a list often show the same person.

    Args:
        checkpoint: The network to measure with.
        samples: Unlabelled crops of the domains.
        domain_fields: The fields of a sample that name its domain; by default those of the checkpoint, or "camera"
            for a plain network.
        minimum: The fewest images of a domain.
        prior: Shrink the statistics of each domain toward the prior, as if the prior were so many more images.
        prior_from: What the prior is: with "cameras" the other domains of the same modality, which are shrunk toward
            all (:meth:`~reid.norm.Profiles.shrunk`); with "network" the statistics that the network uses for the
            domain now (:meth:`~reid.norm.Profiles.towards`).
        batch_size: Images that run through the network at once.
        workers: Processes that read images; 0 reads them in this one.
        seed: Decides the order of the images.
        progress: Is called with the number of images of each batch.
        change: Changes every image before it is resized.

    Returns:
        The profiles of all domains of ``samples``, in alphabetical order, for
        :meth:`~reid.models.checkpoint.Checkpoint.with_profiles`.

    Raises:
        DataError: If there are no samples, a sample has no camera, or a domain has fewer images than ``minimum``.
        ConfigError: If the network has no statistics to calibrate or names its domains by other fields.
    """
    domain_fields = tuple(domain_fields) or checkpoint.domain_fields or ("camera",)
    _check_calibration(checkpoint, domain_fields)
    samples = [samples[row] for row in readable_rows(samples, workers=workers)]
    groups = _group_by_domain(samples, domain_fields, np.random.default_rng(seed))
    domains = sorted(groups)
    if mixes_domains(checkpoint.network):
        batches = _load_mixed_batches(
            checkpoint, groups, batch_size, workers, np.random.default_rng(seed), progress, change
        )
    else:
        batches = _load_batches_of_one_domain(checkpoint, groups, batch_size, workers, progress, change)
    with freed_memory_kept():
        profiles = calibrate(
            checkpoint.network,
            batches,
            domains,
            minimum=minimum,
            weights=checkpoint.weights,
            domain_fields=domain_fields,
        )
    if prior_from == "network":
        return profiles.towards(own_profiles(checkpoint, domains, domain_fields), prior)
    return profiles.shrunk(prior, {name: str(rows[0].modality) for name, rows in groups.items()})


def own_profiles(checkpoint: Checkpoint, domains: Sequence[str], domain_fields: Sequence[str]) -> Profiles:
    """Return the statistics that a network uses for some domains before they are calibrated.

    A plain network uses its one set of statistics for all domains.  A converted network uses the domain's own
    statistics or, for a domain it does not know, the mixture of all.

    Args:
        checkpoint: The network.
        domains: Names of the domains, known or not.
        domain_fields: The fields of a sample that name a domain.

    Returns:
        Profiles of ``domains`` in this order; each counts as 1 image.
    """
    known = domains_of(checkpoint.network)
    if known:
        rows = [known.index(name) if name in known else None for name in domains]
        network = take_rows(checkpoint.network, tuple(domains), rows)
    else:
        network = convert_norm(checkpoint.network, camera_batchnorm(tuple(domains)))
    kept = {
        name: [layer.statistics_of(row) for row in range(len(domains))] for name, layer in norm_layers(network).items()
    }
    return Profiles(
        tuple(domains),
        (1,) * len(domains),
        mean={name: torch.cat([stats.mean for stats in rows]).cpu().clone() for name, rows in kept.items()},
        var={name: torch.cat([stats.var for stats in rows]).cpu().clone() for name, rows in kept.items()},
        weights=checkpoint.weights,
        domain_fields=tuple(domain_fields),
        cov={
            name: layer.running.cov.cpu().clone()
            for name, layer in norm_layers(network).items()
            if isinstance(layer, DomainWhitening)
        },
    )


def replace_domains(old: Profiles, new: Profiles) -> Profiles:
    """Replace domains of some profiles, or add domains to them.

    A domain that both have is taken from ``new``; :meth:`~reid.norm.Profiles.merge` would pool the images of both.

    Args:
        old: The profiles to change.
        new: The profiles of the domains to replace or to add.

    Returns:
        The domains of ``old`` that ``new`` does not have, then those of ``new``.

    Raises:
        WeightsError: If the two were measured with different weights, or their domains are named by different fields.
    """
    old.check_same_network(new)
    kept = old.select([name for name in old.domains if name not in new.domains])

    def append(rows: Mapping[str, Tensor], new_rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {layer: torch.cat([values, new_rows[layer]]) for layer, values in rows.items()}

    domains = kept.domains + new.domains
    return replace(
        kept,
        domains=domains,
        images=kept.images + new.images,
        mean=append(kept.mean, new.mean),
        var=append(kept.var, new.var),
        cov=append(kept.cov, new.cov),
        date=max(old.date, new.date),
        prior=old.priors(new),
        centers=replace_centers(old, new),
        levels=old.levels_of(new, domains),
        score_norm=new.score_norm or old.score_norm,
        choice=new.choice or old.choice,
        cohort=join_cohorts(old.cohort, new.cohort),
    )


def _check_calibration(checkpoint: Checkpoint, domain_fields: tuple[str, ...]) -> None:
    if checkpoint.domain_fields and domain_fields != checkpoint.domain_fields:
        raise ConfigError(
            f"{checkpoint.source} names its domains by {'/'.join(checkpoint.domain_fields)}, so profiles by"
            f" {'/'.join(domain_fields)} do not fit; calibrate by {'/'.join(checkpoint.domain_fields)}"
        )
    if checkpoint.runtime:
        raise ConfigError(f"{checkpoint.source}: {UNCALIBRATED}")
    if not can_be_calibrated(checkpoint):
        raise ConfigError(
            f"{checkpoint.source}: {checkpoint.spec.backbone} has no BatchNorm, so it keeps no statistics to calibrate;"
            ' center its embeddings per camera instead: "reid calibrate --normalize centering"'
        )


def _group_by_domain(
    samples: Sequence[Sample], domain_fields: Sequence[str], random: np.random.Generator
) -> dict[str, list[Sample]]:
    """The samples of every domain, shuffled."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if "camera" in domain_fields and not sample.camera:
            raise DataError(f"{sample.path}: the camera is empty; calibration needs to know each crop's camera")
        groups[domain_of(sample, domain_fields)].append(sample)
    if not groups:
        raise DataError(
            "calibration: got no samples; expected unlabelled crops of each camera, such as those of"
            " reid.data.selection.calibration_samples(samples)"
        )
    return {name: [rows[i] for i in random.permutation(len(rows))] for name, rows in groups.items()}


def _even_batch_size(images: int, batch_size: int) -> int:
    """The size of equal batches; a small last batch would have poor statistics."""
    return -(-images // -(-images // batch_size))


def _load_mixed_batches(
    checkpoint: Checkpoint,
    groups: Groups,
    batch_size: int,
    workers: int,
    random: np.random.Generator,
    progress: Progress | None,
    change: ImageChange | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Load images of all domains in random order, for a network whose domains share statistics."""
    rows = [(sample, index) for index, name in enumerate(sorted(groups)) for sample in groups[name]]
    rows = [rows[i] for i in random.permutation(len(rows))]
    domain = torch.tensor([index for _, index in rows])
    size = _even_batch_size(len(rows), batch_size)
    done = 0
    decoder = checkpoint.execution.decoder
    for batch in load_batches(
        [s for s, _ in rows], checkpoint.transform, batch_size=size, workers=workers, decoder=decoder, change=change
    ):
        yield batch.images, domain[done : done + len(batch.images)]
        done += len(batch.images)
        if progress is not None:
            progress(len(batch.images))


def _load_batches_of_one_domain(
    checkpoint: Checkpoint,
    groups: Groups,
    batch_size: int,
    workers: int,
    progress: Progress | None,
    change: ImageChange | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    for index, name in enumerate(sorted(groups)):
        size = _even_batch_size(len(groups[name]), batch_size)
        for batch in load_batches(
            groups[name],
            checkpoint.transform,
            batch_size=size,
            workers=workers,
            decoder=checkpoint.execution.decoder,
            change=change,
        ):
            yield batch.images, torch.full((len(batch.images),), index)
            if progress is not None:
                progress(len(batch.images))
