"""The statistics a network has before it is calibrated, and profiles put together from several.

Nothing here measures anything; that is :mod:`reid.models.calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from reid.errors import DataError, unknown_name
from reid.models.checkpoint import Checkpoint
from reid.norm import Profiles, camera_batchnorm, convert_norm, domains_of
from reid.norm.convert import PLAIN_NORMS, NormLayer, norm_layers, take_rows
from reid.norm.domain_policy import FUSED_NORMS
from reid.norm.domain_whitening import DomainWhitening
from reid.records import Sample, domain_of


def keeps_statistics(checkpoint: Checkpoint) -> bool:
    """Whether the network has BatchNorm, or layers of ours: a LayerNorm backbone has nothing to calibrate."""
    kinds = (*PLAIN_NORMS, NormLayer)
    return any(isinstance(m, kinds) or type(m).__name__ in FUSED_NORMS for m in checkpoint.network.modules())


def own_profiles(checkpoint: Checkpoint, domains: Sequence[str], domain_fields: Sequence[str]) -> Profiles:
    """What the domains ``domains`` are normalized with before they are calibrated, each counted as 1 image.

    That is the network's one set of statistics where it is plain; else the domain's own or, where it is not
    known, the mixture of all.  ``domain_fields`` are the fields that name a domain.
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
        mean={name: torch.cat([stats.mean for stats in rows]).clone() for name, rows in kept.items()},
        var={name: torch.cat([stats.var for stats in rows]).clone() for name, rows in kept.items()},
        weights=checkpoint.weights,
        domain_fields=tuple(domain_fields),
        cov={
            name: layer.running.cov.clone()
            for name, layer in norm_layers(network).items()
            if isinstance(layer, DomainWhitening)
        },
    )


def replaced(old: Profiles, new: Profiles) -> Profiles:
    """``old`` with the domains of ``new`` in place of its own of that name, or added; nothing is mixed.

    Raises WeightsError where they are of different weights or fields.
    """
    old.merge(new)  # refuses what does not belong together
    kept = old.select([name for name in old.domains if name not in new.domains])

    def joined(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {layer: torch.cat([rows, theirs[layer]]) for layer, rows in ours.items()}

    return replace(
        kept,
        domains=kept.domains + new.domains,
        images=kept.images + new.images,
        mean=joined(kept.mean, new.mean),
        var=joined(kept.var, new.var),
        cov=joined(kept.cov, new.cov),
        date=max(old.date, new.date),
        prior=old.priors(new),
    )


def of_domains(samples: Sequence[Sample], domain_fields: Sequence[str], domains: Sequence[str]) -> list[Sample]:
    """The samples of the domains ``domains``; DataError for a name that no sample has."""
    known = sorted({domain_of(sample, domain_fields) for sample in samples})
    for name in domains:
        if name not in known:
            raise DataError(unknown_name("/".join(domain_fields), name, known))
    return [sample for sample in samples if domain_of(sample, domain_fields) in domains]


def one_of_each_track(samples: Sequence[Sample], domain_fields: Sequence[str]) -> list[Sample]:
    """The middle crop of every track of a domain, in their order: crops of a track are nearly one picture.

    Middle of those in the list, in the order of time where all have one.  Raises DataError for a sample without a
    track.
    """
    rows: dict[tuple[str, str], list[int]] = {}
    for row, sample in enumerate(samples):
        if not sample.track:
            raise DataError(
                f"{sample.path}: no track, so which crops are of one passing is unknown; fill the column track, which"
                ' "reid ingest" does, or keep crops some seconds apart (--apart)'
            )
        rows.setdefault((domain_of(sample, domain_fields), sample.track), []).append(row)
    kept = set()
    for track in rows.values():
        times = [time for row in track if (time := samples[row].time) is not None]
        order = np.argsort([time.timestamp() for time in times], kind="stable") if len(times) == len(track) else None
        middle = (len(track) - 1) // 2
        kept.add(track[middle if order is None else int(order[middle])])
    return [sample for row, sample in enumerate(samples) if row in kept]


def spaced(samples: Sequence[Sample], domain_fields: Sequence[str], seconds: float) -> list[Sample]:
    """Samples of a domain at least ``seconds`` apart, in their order: neighbours in a track are nearly one picture.

    The first of each stretch stays.  Raises DataError for a sample without a time.
    """
    for sample in samples:
        if sample.time is None:
            raise DataError(f"{sample.path}: no time, so how far apart crops are is unknown; fill the column time")
    kept: set[int] = set()
    last: dict[str, float] = {}
    moments = [0.0 if sample.time is None else sample.time.timestamp() for sample in samples]
    for row in np.argsort(moments, kind="stable").tolist():
        label = domain_of(samples[row], domain_fields)
        if moments[row] - last.get(label, -np.inf) >= seconds:
            last[label] = moments[row]
            kept.add(row)
    return [sample for row, sample in enumerate(samples) if row in kept]
