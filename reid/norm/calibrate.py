"""Statistics of cameras (or modalities, sites) from unlabelled images: AdaBN (Li et al. 2016) per domain.

``calibrate`` measures, :class:`~reid.norm.profiles.Profiles` is what it measured, ``install`` makes a
network that uses it.  The network measured is never changed.  No identity labels are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, DataError, WeightsError
from reid.norm.condition import Given, current_condition
from reid.norm.convert import NormLayer, camera_batchnorm, convert_norm, domains_of, norm_layers, take_rows
from reid.norm.covariance import CovStats
from reid.norm.profiles import Profiles, merged
from reid.norm.specialised.adapters import adapted_layers, adapter_domains
from reid.norm.statistics import Stats

Batches = Iterable[tuple[Tensor, Tensor]]


def calibrate(
    network: nn.Module,
    batches: Batches,
    names: Sequence[str],
    *,
    minimum: int = 2,
    weights: str = "",
    domain_fields: Sequence[str] = ("camera",),
) -> Profiles:
    """Measure the statistics of the domains ``names`` in every norm layer of ``network``.

    ``network`` may be plain or converted.  ``batches`` yields (images (B, 3, H, W), labels (B,) int64
    into ``names``), once through.  Each batch is normalized with its own moments, so that a
    layer sees what it will see once the layers before it are calibrated; what is kept are the moments of
    all images together, merged exactly (averaging batch variances would lose the variance between batches).
    Batches should hold many images of each of their domains: sort by domain, shuffle in time.
    Raises DataError when a domain has fewer than ``minimum`` images.
    """
    adapted = adapter_domains(network)
    if adapted_layers(network) and adapted != tuple(names):
        raise ConfigError(
            f"calibrate: the adapters of this network are of {', '.join(adapted)}; measure just these, in this order"
        )
    measured = _measuring_copy(network, tuple(names))
    found: dict[str, Stats | CovStats] = {}
    hooks = [
        layer.register_forward_pre_hook(partial(_collect, found, name, len(names)))
        for name, layer in norm_layers(measured).items()
    ]
    given = Given(measured)
    with torch.inference_mode():
        for images, labels in batches:
            given(images, labels)
    for hook in hooks:
        hook.remove()
    images_seen = _image_counts(found, names, minimum)
    diagonal = {layer: s.diagonal() if isinstance(s, CovStats) else s for layer, s in found.items()}
    return Profiles(
        tuple(names),
        images_seen,
        mean={layer: stats.mean.clone() for layer, stats in diagonal.items()},
        var={layer: stats.var.clone() for layer, stats in diagonal.items()},
        weights=weights,
        domain_fields=tuple(domain_fields),
        cov={layer: stats.cov.clone() for layer, stats in found.items() if isinstance(stats, CovStats)},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def install(network: nn.Module, profiles: Profiles) -> nn.Module:
    """A copy of ``network`` with the domains of ``profiles`` replaced or added, by name.

    A plain network becomes a converted one that knows just those domains.  Raises WeightsError when the
    layers of the profiles are not the layers of the network.
    """
    known = domains_of(network)
    names = known + tuple(name for name in profiles.domains if name not in known)
    new = _with_domains(network, names) if known else convert_norm(network, camera_batchnorm(profiles.domains))
    layers = norm_layers(new)
    if set(layers) != set(profiles.mean):
        raise WeightsError(
            f"profiles of {len(profiles.mean)} norm layers do not fit a network with {len(layers)}:"
            " they were measured on another network; calibrate again with these weights"
        )
    for name, layer in layers.items():
        _install(layer, name, profiles)
    return new


def _measuring_copy(network: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """A copy with exactly the domains ``names`` that normalizes by the batch and updates nothing."""
    measuring = _with_domains(network, names) if domains_of(network) else convert_norm(network, camera_batchnorm(names))
    measuring.eval()
    for layer in norm_layers(measuring).values():
        layer.momentum = 0.0
        layer.train()
    return measuring


def _with_domains(network: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """A copy with just the domains ``names``: known ones keep their statistics, new ones get the mixture of all."""
    known = domains_of(network)
    return take_rows(network, names, [known.index(name) if name in known else None for name in names])


def _collect(
    found: dict[str, Stats | CovStats], name: str, groups: int, layer: NormLayer, inputs: tuple[Tensor]
) -> None:
    """Merge the statistics of a layer's input, per domain of the batch, into what was found so far."""
    condition = current_condition()
    labels = condition.domain if condition is not None else None
    if isinstance(labels, Tensor) and labels.is_floating_point():
        raise ConfigError("calibrate: expected a label for each image, got weights; a domain is measured on its own")
    if not isinstance(labels, Tensor):
        labels = torch.full((len(inputs[0]),), int(labels or 0))
    stats = layer.observe(inputs[0], labels, groups)
    found[name] = merged(found[name], stats) if name in found else stats


def _image_counts(found: Mapping[str, Stats | CovStats], names: Sequence[str], minimum: int) -> tuple[int, ...]:
    mass = next(iter(found.values())).mass.tolist() if found else [0.0] * len(names)
    counts = tuple(int(m) for m in mass)
    short = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < minimum]
    if short:
        raise DataError(
            f"calibration: expected at least {minimum} images of each camera, too few of: {', '.join(short)}"
        )
    return counts


def _install(layer: NormLayer, name: str, profiles: Profiles) -> None:
    stats = profiles.stats(name)
    if stats.mean.shape != (len(profiles.domains), layer.channels):
        raise WeightsError(f"profiles of {name}: expected {layer.channels} channels, got {stats.mean.shape[-1]}")
    for row, domain in enumerate(profiles.domains):
        layer.install(layer.domains.index(domain), stats, row)
