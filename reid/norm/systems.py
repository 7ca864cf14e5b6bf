"""The members of the family by name: what each makes of a BatchNorm layer, and which layers it takes.

A system is a few lines over one layer: another source of statistics, a gate, a factor, a module behind it.
``docs/normalization.md`` says when to use which.  Nothing here knows networks; :mod:`reid.norm.convert` does.
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
from reid.norm.domain_affine import Transfer
from reid.norm.domain_batchnorm import DomainBatchNorm
from reid.norm.domain_rows import carry_over
from reid.norm.domain_whitening import DomainWhitening
from reid.norm.specialised.generalization import SNR, DomainNorm, MixStyle
from reid.norm.statistics_source import Align, Blend, Optimized, Source

WHITENED = 4  # channels that are whitened together (Roy et al. 2019, Office-Home)
M = TypeVar("M", bound=nn.Module)
Places = Callable[[int], Sequence[int]]


def first(part: float) -> Places:
    """The first ``part`` (0..1) of the norm layers, counted from the input, at least one."""
    return lambda count: range(max(round(part * count), 1))


def at(*positions: float) -> Places:
    """The norm layers at these positions, 0 the first and 1 the last."""
    return lambda count: sorted({round(position * (count - 1)) for position in positions})


@dataclass(frozen=True)
class System:
    """``change`` makes the layer; ``places`` says of how many norm layers which ones, as indices.

    It needs at least ``domains`` named domains and at most ``most``; ``vectors`` says whether it also takes
    norms of vectors (a BNNeck), which have no positions; no labels name its ``latent`` domains, a branch of
    the network guesses them; one that ``guesses`` needs no labels after training; ``shared``: its affine
    cannot be one for each domain.
    """

    change: Callable[[DomainBatchNorm], nn.Module] = lambda layer: layer
    places: Places = range
    domains: int = 0
    most: int | None = None
    vectors: bool = True
    latent: int = 0
    guesses: bool = False
    shared: bool = False

    def check(self, name: str, names: Sequence[str], affine: str) -> None:
        """ConfigError when the system cannot have these domains, or this affine."""
        if self.shared and affine != "shared":
            raise ConfigError(f'norm system "{name}" has one scale and shift for all: set norm.affine = "shared"')
        if len(names) < self.domains or (self.most is not None and len(names) > self.most):
            wanted = f"{self.domains}" if self.domains == self.most else f"at least {self.domains}"
            raise ConfigError(
                f'norm system "{name}" needs {wanted} domains, got {len(names)} ({", ".join(names) or "none"});'
                " choose other fields with norm.domain_fields, or another system"
            )

    def takes(self, layer: DomainBatchNorm) -> bool:
        """Whether it can change this layer."""
        return self.vectors or not issubclass(layer.plain, nn.BatchNorm1d)


def _like(part: M, layer: DomainBatchNorm) -> M:
    """A new part where the layer is, in its dtype."""
    return part.to(layer.running_mean.device, layer.running_mean.dtype)


def _with_source(make: Callable[[DomainBatchNorm], Source]) -> Callable[[DomainBatchNorm], nn.Module]:
    def change(layer: DomainBatchNorm) -> nn.Module:
        layer.source = _like(make(layer), layer)
        return layer

    return change


def _ibn(layer: DomainBatchNorm) -> Source:
    gate = torch.ones(layer.channels)
    gate[: layer.channels // 2] = 0.0
    return Blend(gate, learned=False)


def _transfer(layer: DomainBatchNorm) -> nn.Module:
    layer.transfer = Transfer()
    return layer


def _gated(layer: DomainBatchNorm) -> nn.Module:
    layer.gate = _like(DomainGate(layer.channels, layer.groups), layer)
    return layer


def _unit(layer: DomainBatchNorm) -> nn.Module:
    new = _like(DomainNorm(layer.channels), layer)
    if layer.weight is not None and layer.bias is not None:
        new.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        carry_over(new, layer)
    return nn.Sequential(new, layer.drop, layer.act)


def _whitened(layer: DomainBatchNorm) -> nn.Module:
    group = math.gcd(layer.channels, WHITENED)
    new = DomainWhitening(
        layer.channels, layer.domains, group=group, affine=layer.affine, plain=layer.plain, momentum=layer.momentum
    )
    new.to(layer.running_mean.device, layer.running_mean.dtype)
    new.load_state_dict(layer.state_dict())
    new.sync, new.drop, new.act = layer.sync, layer.drop, layer.act
    carry_over(new, layer)
    return new


def _followed(make: Callable[[int], nn.Module]) -> Callable[[DomainBatchNorm], nn.Module]:
    """The layer as it is, and a module behind it."""
    return lambda layer: nn.Sequential(layer, _like(make(layer.channels), layer))


SYSTEMS: dict[str, System] = {
    "batch": System(),
    "ibn": System(_with_source(_ibn), places=first(0.75), vectors=False),
    "isw": System(_with_source(_ibn), places=first(0.75), vectors=False),  # and a loss, reid.training.layer_objectives
    "bin": System(_with_source(lambda layer: Blend(torch.ones(layer.channels), learned=True)), vectors=False),
    "dson": System(_with_source(lambda layer: Optimized(layer.groups)), domains=2, vectors=False),
    "dial": System(_with_source(lambda _: Align()), domains=2),
    "transnorm": System(_transfer, domains=2, most=2),
    "wbn": System(domains=2, latent=3, guesses=True),
    "mixstyle": System(_followed(lambda _: MixStyle()), places=at(0.1, 0.3), vectors=False),
    "snr": System(_followed(SNR), places=at(0.25, 0.5), vectors=False),
    "domainnorm": System(_unit, places=first(0.25), vectors=False, shared=True),
    "dwt": System(_whitened, places=first(0.25), domains=1, vectors=False, shared=True),
    "gated": System(_gated, domains=2, guesses=True),
}
