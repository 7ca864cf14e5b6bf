"""Train one domain of a network by itself: the other domains, and all that is shared, stay bit for bit.

:func:`only_domain` makes a network of one domain, and :func:`with_domain` puts it back after training.  A gradient mask
over the rows would not be enough, since weight decay and momentum move rows whose gradient is zero.  This works for
domains of norms (universal representations, Bilen and Vedaldi 2017), of adapters, and of both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, WeightsError
from reid.norm.convert import NormLayer, domain_index, norm_layers, take_rows
from reid.norm.specialised.adapters import adapted_layers, adapter_domains


class DomainSize(NamedTuple):
    """How many numbers a network keeps for one domain.

    Attributes:
        parameters: Learned numbers.
        statistics: Running means and variances.
    """

    parameters: int
    statistics: int


def only_domain(network: nn.Module, name: str) -> nn.Module:
    """Make a network with one domain, where all that the domains share is frozen, so that the domain can be trained.

    The result needs no condition.  What belongs to the domain (adapters, its own affine) stays as trainable as it was.

    Args:
        network: A network with several domains; it stays as it is.
        name: The name of the domain.

    Returns:
        A copy with this domain only.

    Raises:
        ConditionError: If the domain is unknown.
        ConfigError: If the running statistics of a norm are shared, since training would move them.

    Example:
        >>> from reid.norm import convert_norm, domain_batchnorm, domains_of
        >>> network = convert_norm(nn.Sequential(nn.BatchNorm2d(4)), domain_batchnorm(["person", "vehicle"]))
        >>> domains_of(only_domain(network, "vehicle"))
        ('vehicle',)
    """
    row = domain_index(adapter_domains(network), name)
    for at, layer in network.named_modules():
        plain = isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm)
        if plain or (isinstance(layer, NormLayer) and not layer.domains):
            raise ConfigError(
                f"{at}: its statistics are shared by all domains and would move when one is trained;"
                " convert the norms first: convert_norm(network, domain_batchnorm(names))"
            )
    new = take_rows(network, (name,), [row])
    for adapted in adapted_layers(new).values():
        adapted.domains, adapted.adapters = (name,), nn.ModuleList([adapted.adapter(row)])
    own = _ids_of_own(new)
    for parameter in new.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in own)
    return new


def with_domain(network: nn.Module, part: nn.Module) -> nn.Module:
    """Put a domain that was trained by itself back into the network with all domains.

    Args:
        network: The network with all domains; it stays as it is.
        part: The network of one domain that :func:`only_domain` made, trained since.

    Returns:
        A copy of ``network`` with the domain of ``part``; the other domains stay bit for bit.

    Raises:
        ConfigError: If ``part`` has not exactly one domain.
        WeightsError: If ``part`` has other shared weights.
    """
    names = adapter_domains(part)
    if len(names) != 1:
        raise ConfigError(f"expected a network of one domain, as only_domain makes it, got {list(names)}")
    row, shared = domain_index(adapter_domains(network), names[0]), _shared_state(part)
    for key, value in _shared_state(network).items():
        if key not in shared or not torch.equal(value, shared[key]):
            raise WeightsError(f"{key}: the part of {names[0]} does not have the weights that the domains share")
    new, layers = copy.deepcopy(network), adapted_layers(part)
    trained = dict(_norm_rows(part))
    with torch.no_grad():
        for key, value in _norm_rows(new):
            target = value if value.shape == trained[key].shape else value[row]
            target.copy_(trained[key].reshape(target.shape))
    for at, adapted in adapted_layers(new).items():
        adapted.adapters[row] = copy.deepcopy(layers[at].adapter(0))
    return new


def domain_sizes(network: nn.Module) -> dict[str, DomainSize]:
    """Count the numbers that a network keeps for each domain: adapters, its own affine, and statistics.

    Example:
        >>> from reid.norm import convert_norm, domain_batchnorm
        >>> network = convert_norm(nn.Sequential(nn.BatchNorm2d(4)), domain_batchnorm(["person", "vehicle"]))
        >>> domain_sizes(network)["person"]
        DomainSize(parameters=8, statistics=8)
    """
    sizes = {}
    for row, name in enumerate(adapter_domains(network)):
        parameters = statistics = 0
        for adapted in adapted_layers(network).values():
            parameters += sum(parameter.numel() for parameter in adapted.adapter(row).parameters())
        for layer in norm_layers(network).values():
            for value in _rows_of(layer).values():
                numbers = value.numel() // len(layer.domains)
                parameters += numbers if isinstance(value, nn.Parameter) else 0
                statistics += numbers if not isinstance(value, nn.Parameter) and value.is_floating_point() else 0
        sizes[name] = DomainSize(parameters, statistics)
    return sizes


def _rows_of(layer: NormLayer) -> dict[str, Tensor]:
    """Find what a norm keeps for every domain: statistics, own affine, rows of its parts; (G, ...) if G > 1."""
    if not layer.domains:
        return {}
    found: dict[str, Tensor] = dict(layer.named_buffers(recurse=False))
    if layer.affine == "domain":
        found.update(layer.named_parameters(recurse=False))
    for name, part in layer.named_children():
        found.update({f"{name}.{key}": part.get_parameter(key) for key in getattr(part, "row_parameters", ())})
    return found


def _norm_rows(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for at, layer in norm_layers(network).items():
        for key, value in _rows_of(layer).items():
            yield f"{at}.{key}", value


def _shared_state(network: nn.Module) -> dict[str, Tensor]:
    own = _ids_of_own(network)
    named = (*network.named_parameters(), *network.named_buffers())
    return {key: value for key, value in named if id(value) not in own}


def _ids_of_own(network: nn.Module) -> set[int]:
    """Return the ids of all tensors that belong to single domains: rows of norms, adapters."""
    adapters = (layer.adapters.parameters() for layer in adapted_layers(network).values())
    return {id(value) for value in (*(value for _, value in _norm_rows(network)), *chain.from_iterable(adapters))}
