"""The members of the normalization family by name: how each changes a BatchNorm layer, and which layers it changes.

A system is a few lines over one layer: another source of statistics, a gate, a factor, or a module behind it.
``docs/normalization.md`` says when to use which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from reid.errors import ConfigError
from reid.norm.assignment import DomainGate
from reid.norm.batchnorm_layer import DomainBatchNorm
from reid.norm.domain_affine import Transfer
from reid.norm.domain_rows import copy_flags_and_hooks
from reid.norm.domain_whitening import DomainWhitening
from reid.norm.specialised.generalization import SNR, DomainNorm, MixStyle
from reid.norm.statistics_source import Align, Blend, Optimized, Source

WHITENED_CHANNELS = 4  # channels that are whitened together (Roy et al. 2019, Office-Home)
Module = TypeVar("Module", bound=nn.Module)
LayerChoice = Callable[[int], Sequence[int]]


def first_layers(share: float) -> LayerChoice:
    """Choose the first ``share`` (0..1) of the norm layers, counted from the input, at least one.

    Example:
        >>> list(first_layers(0.25)(8))
        [0, 1]
    """
    return lambda count: range(max(round(share * count), 1))


def layers_at(*positions: float) -> LayerChoice:
    """Choose the norm layers at these positions, where 0 is the first and 1 the last.

    Example:
        >>> layers_at(0, 0.5, 1)(5)
        [0, 2, 4]
    """
    return lambda count: sorted({round(position * (count - 1)) for position in positions})


@dataclass(frozen=True)
class System:
    """A member of the normalization family.

    Attributes:
        change: Makes the layer of the system from a BatchNorm per domain.
        layers: Chooses, for a number of norm layers, the indices of those that are changed.
        min_domains: The smallest number of named domains.
        max_domains: The largest number of named domains, or None for any.
        takes_vectors: Whether it also changes norms of vectors (a BNNeck), which have no positions.
        latent: The number of domains that have no labels and that a branch of the network predicts; 0 for none.
        guesses: Whether it needs no domains after training.
        needs_shared_affine: Whether its affine cannot be one for each domain.
        leaves_others: Whether the layers that it does not change stay as they are, without domains.
    """

    change: Callable[[DomainBatchNorm], nn.Module] = lambda layer: layer
    layers: LayerChoice = range
    min_domains: int = 0
    max_domains: int | None = None
    takes_vectors: bool = True
    latent: int = 0
    guesses: bool = False
    needs_shared_affine: bool = False
    leaves_others: bool = False

    def check(self, name: str, domains: Sequence[str], affine: str) -> None:
        """Raise ConfigError when the system, called ``name``, cannot have these domains or this affine."""
        if self.needs_shared_affine and affine != "shared":
            raise ConfigError(f'norm system "{name}" has one scale and shift for all: set norm.affine = "shared"')
        if len(domains) < self.min_domains or (self.max_domains is not None and len(domains) > self.max_domains):
            needed = f"{self.min_domains}" if self.min_domains == self.max_domains else f"at least {self.min_domains}"
            raise ConfigError(
                f'norm system "{name}" needs {needed} domains, got {len(domains)} ({", ".join(domains) or "none"});'
                " choose other fields with norm.domain_fields, or another system"
            )

    def can_change(self, layer: DomainBatchNorm) -> bool:
        """Whether it can change this layer."""
        return self.takes_vectors or not issubclass(layer.plain, nn.BatchNorm1d)


def _moved_to(part: Module, layer: DomainBatchNorm) -> Module:
    """Move a new part to the device and the dtype of the layer."""
    return part.to(layer.running_mean.device, layer.running_mean.dtype)


def _with_source(make: Callable[[DomainBatchNorm], Source]) -> Callable[[DomainBatchNorm], nn.Module]:
    def change(layer: DomainBatchNorm) -> nn.Module:
        layer.source = _moved_to(make(layer), layer)
        return layer

    return change


def _ibn(layer: DomainBatchNorm) -> Source:
    gate = torch.ones(layer.channels)
    gate[: layer.channels // 2] = 0.0
    return Blend(gate, learned=False)


def _with_transfer(layer: DomainBatchNorm) -> nn.Module:
    layer.transfer = Transfer()
    return layer


def _with_gate(layer: DomainBatchNorm) -> nn.Module:
    layer.gate = _moved_to(DomainGate(layer.channels, layer.domain_count), layer)
    return layer


def _domainnorm(layer: DomainBatchNorm) -> nn.Module:
    new = _moved_to(DomainNorm(layer.channels), layer)
    if layer.weight is not None and layer.bias is not None:
        new.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        copy_flags_and_hooks(new, layer)
    return nn.Sequential(new, layer.drop, layer.act)


def _whitened(layer: DomainBatchNorm) -> nn.Module:
    new = DomainWhitening(
        layer.channels,
        layer.domains,
        block_size=math.gcd(layer.channels, WHITENED_CHANNELS),
        affine=layer.affine,
        plain=layer.plain,
        momentum=layer.momentum,
    )
    new.to(layer.running_mean.device, layer.running_mean.dtype)
    new.load_state_dict(layer.state_dict())
    new.sync, new.drop, new.act = layer.sync, layer.drop, layer.act
    copy_flags_and_hooks(new, layer)
    return new


def _followed_by(make: Callable[[int], nn.Module]) -> Callable[[DomainBatchNorm], nn.Module]:
    """Keep the layer as it is and put a module behind it."""
    return lambda layer: nn.Sequential(layer, _moved_to(make(layer.channels), layer))


SYSTEMS: dict[str, System] = {
    "batch": System(),
    "ibn": System(_with_source(_ibn), layers=first_layers(0.75), takes_vectors=False),
    # isw is ibn with a loss: reid.training.layer_objectives.
    "isw": System(_with_source(_ibn), layers=first_layers(0.75), takes_vectors=False),
    "bin": System(_with_source(lambda layer: Blend(torch.ones(layer.channels), learned=True)), takes_vectors=False),
    "dson": System(_with_source(lambda layer: Optimized(layer.domain_count)), min_domains=2, takes_vectors=False),
    "dial": System(_with_source(lambda _: Align()), min_domains=2),
    "transnorm": System(_with_transfer, min_domains=2, max_domains=2),
    "wbn": System(min_domains=2, latent=3, guesses=True),
    "mixstyle": System(_followed_by(lambda _: MixStyle()), layers=layers_at(0.1, 0.3), takes_vectors=False),
    "snr": System(_followed_by(SNR), layers=layers_at(0.25, 0.5), takes_vectors=False),
    "domainnorm": System(_domainnorm, layers=first_layers(0.25), takes_vectors=False, needs_shared_affine=True),
    "dwt": System(_whitened, layers=first_layers(0.25), min_domains=1, takes_vectors=False, needs_shared_affine=True),
    "gated": System(_with_gate, min_domains=2, guesses=True),
    "gated_first": System(
        _with_gate, layers=first_layers(0.25), min_domains=2, takes_vectors=False, guesses=True, leaves_others=True
    ),
}
