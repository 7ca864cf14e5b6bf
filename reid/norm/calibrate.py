"""Measure the statistics of cameras (or modalities, sites) from unlabelled images: AdaBN (Li et al. 2016) per domain.

:func:`calibrate` measures, :class:`~reid.norm.profiles.Profiles` holds what it measured, and :func:`install` makes a
network that uses it.  The network that is measured stays as it is.  Identities are not needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, DataError, WeightsError
from reid.norm.condition import Given, current_condition
from reid.norm.convert import NormLayer, convert_norm, domains_of, norm_layers, take_rows
from reid.norm.covariance import CovarianceStatistics
from reid.norm.domain_policy import camera_batchnorm
from reid.norm.profiles import Profiles, merge_statistics
from reid.norm.specialised.adapters import adapted_layers, adapter_domains
from reid.norm.statistics import Statistics

Batches = Iterable[tuple[Tensor, Tensor]]


def calibrate(
    network: nn.Module,
    batches: Batches,
    domains: Sequence[str],
    *,
    minimum: int = 2,
    weights: str = "",
    domain_fields: Sequence[str] = ("camera",),
) -> Profiles:
    """Measure the statistics of domains in every norm layer of a network.

    Each batch is normalized with its own statistics, so that a layer sees what it will see once the layers before it
    are calibrated.  The result holds the statistics of all images together, merged exactly; averaging the variances
    of batches would lose the variance between batches.  A batch should hold many images of each of its domains: sort
    by domain, and shuffle in time.

    Args:
        network: Plain or converted; it stays as it is.
        batches: Pairs (images (B, 3, H, W), domain (B,) int64, indices into ``domains``), read once.
        domains: The names of the domains that are measured.
        minimum: The smallest number of images of a domain.
        weights: The fingerprint of the weights, kept in the result.
        domain_fields: The fields of a sample that name its domain, kept in the result.

    Returns:
        The measured statistics.

    Raises:
        DataError: If a domain has fewer than ``minimum`` images.
        ConfigError: If the network has adapters for other domains.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1)).eval()
        >>> images = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
        >>> profiles = calibrate(network, [(images, torch.tensor([0, 0]))], ["door"])
        >>> profiles.images, profiles.mean["0"].item(), profiles.var["0"].item()
        ((2,), 2.0, 1.0)
    """
    adapted = adapter_domains(network)
    if adapted_layers(network) and adapted != tuple(domains):
        raise ConfigError(
            f"calibrate: the adapters of this network are of {', '.join(adapted)}; measure just these, in this order"
        )
    measured = _measuring_copy(network, tuple(domains))
    found: dict[str, Statistics | CovarianceStatistics] = {}
    hooks = [
        layer.register_forward_pre_hook(partial(_collect, found, name, len(domains)))
        for name, layer in norm_layers(measured).items()
    ]
    given = Given(measured)
    device = device_of(measured)
    with torch.inference_mode():
        for images, domain in batches:
            given(images.to(device), domain.to(device))
    for hook in hooks:
        hook.remove()
    found = {name: statistics.to("cpu") for name, statistics in found.items()}
    image_counts = _image_counts(found, domains, minimum)
    diagonal = {layer: s.diagonal() if isinstance(s, CovarianceStatistics) else s for layer, s in found.items()}
    return Profiles(
        tuple(domains),
        image_counts,
        mean={layer: stats.mean.clone() for layer, stats in diagonal.items()},
        var={layer: stats.var.clone() for layer, stats in diagonal.items()},
        weights=weights,
        domain_fields=tuple(domain_fields),
        cov={layer: stats.cov.clone() for layer, stats in found.items() if isinstance(stats, CovarianceStatistics)},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network, by its first parameter or buffer; the CPU where it has none."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def install(network: nn.Module, profiles: Profiles) -> nn.Module:
    """Make a network whose domains have the statistics of ``profiles``.

    Args:
        network: A converted network, whose domains are replaced or added by name, or a plain one, which is converted
            and knows just the domains of ``profiles``; it stays as it is.
        profiles: Statistics that were measured on this network.

    Returns:
        A copy with these domains.

    Raises:
        WeightsError: If the layers of the profiles are not those of the network.

    Example:
        >>> from reid.norm import domains_of
        >>> network = nn.Sequential(nn.BatchNorm2d(1)).eval()
        >>> images = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
        >>> profiles = calibrate(network, [(images, torch.tensor([0, 0]))], ["door"])
        >>> calibrated = install(network, profiles)
        >>> domains_of(calibrated), calibrated[0].running_mean.item()
        (('door',), 2.0)
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


def _measuring_copy(network: nn.Module, domains: tuple[str, ...]) -> nn.Module:
    """Make a copy with exactly these domains, which normalizes by the batch and updates nothing."""
    if domains_of(network):
        measuring = _with_domains(network, domains)
    else:
        measuring = convert_norm(network, camera_batchnorm(domains))
    measuring.eval()
    for layer in norm_layers(measuring).values():
        layer.momentum = 0.0
        layer.train()
    return measuring


def _with_domains(network: nn.Module, domains: tuple[str, ...]) -> nn.Module:
    """Make a copy with just these domains: known ones keep their statistics, new ones get the mixture of all."""
    known = domains_of(network)
    return take_rows(network, domains, [known.index(name) if name in known else None for name in domains])


def _collect(
    found: dict[str, Statistics | CovarianceStatistics],
    name: str,
    domain_count: int,
    layer: NormLayer,
    inputs: tuple[Tensor],
) -> None:
    """Merge the statistics of the input of a layer, by domain, into what was found so far."""
    condition = current_condition()
    domain = condition.domain if condition is not None else None
    if isinstance(domain, Tensor) and domain.is_floating_point():
        raise ConfigError("calibrate: expected a domain for each image, got weights; a domain is measured by itself")
    if not isinstance(domain, Tensor):
        domain = torch.full((len(inputs[0]),), int(domain or 0), device=inputs[0].device)
    statistics = layer.measure(inputs[0], domain, domain_count)
    found[name] = merge_statistics(found[name], statistics) if name in found else statistics


def _image_counts(
    found: Mapping[str, Statistics | CovarianceStatistics], domains: Sequence[str], minimum: int
) -> tuple[int, ...]:
    mass = next(iter(found.values())).mass.tolist() if found else [0.0] * len(domains)
    counts = tuple(int(images) for images in mass)
    short = [f"{name} ({count})" for name, count in zip(domains, counts, strict=True) if count < minimum]
    if short:
        raise DataError(
            f"calibration: expected at least {minimum} images of each camera, too few of: {', '.join(short)}"
        )
    return counts


def _install(layer: NormLayer, name: str, profiles: Profiles) -> None:
    statistics = profiles.statistics(name)
    if statistics.mean.shape != (len(profiles.domains), layer.channels):
        raise WeightsError(f"profiles of {name}: expected {layer.channels} channels, got {statistics.mean.shape[-1]}")
    for row, domain in enumerate(profiles.domains):
        layer.set_statistics(layer.domains.index(domain), statistics, row)
