"""Policies: which domains and which system a converted network gets, and how to make its layers from BatchNorms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from reid.errors import ConfigError, unknown_name
from reid.norm.batchnorm_layer import AFFINES, DomainBatchNorm
from reid.norm.domain_rows import copy_flags_and_hooks
from reid.norm.systems import SYSTEMS

FUSED_NORMS = ("BatchNormAct2d", "SyncBatchNormAct")  # timm's, which also drop and activate


@dataclass(frozen=True)
class DomainPolicy:
    """A normalization for a network: which domains it has and what its layers do with them.

    Attributes:
        axis: What the domains stand for: "camera", "modality", "category", or another word, which messages use.
        domains: The names of the domains; without names there is one domain, as in plain BatchNorm.
        affine: "shared": one scale and shift for all domains (camera-based BN, modality BN), which keeps their
            embeddings comparable.  "domain": one for each (domain-specific BN, Chang et al. 2019).
        system: The member of the family (:data:`~reid.norm.systems.SYSTEMS`) that the first layers, or all, become;
            the others become BatchNorm per domain.

    Raises:
        ConfigError: If the names are not distinct, if a value is unknown, or if the system cannot have these domains.

    Example:
        >>> DomainPolicy("modality", ("visible", "infrared"), system="dial").domains
        ('visible', 'infrared')
    """

    axis: str
    domains: tuple[str, ...]
    affine: str = "shared"
    system: str = "batch"

    def __post_init__(self) -> None:
        if not isinstance(self.domains, tuple):
            raise ConfigError(f"{self.axis} norm: expected a list of {self.axis} names, got {self.domains!r}")
        if len(set(self.domains)) != len(self.domains) or (self.system == "batch" and not self.domains):
            raise ConfigError(f"{self.axis} norm: expected distinct {self.axis} names, got {list(self.domains)}")
        if self.affine not in AFFINES:
            raise ConfigError(unknown_name("affine", self.affine, AFFINES))
        if self.system not in SYSTEMS:
            raise ConfigError(unknown_name("norm system", self.system, SYSTEMS))
        SYSTEMS[self.system].check(self.system, self.domains, self.affine)

    def build(self, plain: nn.Module, *, special: bool = True) -> nn.Module:
        """Make the layer that takes the place of ``plain``.

        Args:
            plain: A BatchNorm, or a :class:`DomainBatchNorm` without domains.
            special: Whether the layer is of the policy's system, where the system can change it; otherwise it is
                BatchNorm per domain, which computes what ``plain`` does, in every domain.

        Returns:
            A new layer.
        """
        layer, system = self._with_domains(plain), SYSTEMS[self.system]
        if not special or not system.can_change(layer):
            return layer
        return system.change(layer).train(plain.training)

    def _with_domains(self, plain: nn.Module) -> DomainBatchNorm:
        if isinstance(plain, DomainBatchNorm):
            return plain.take_rows(self.domains, [0] * max(len(self.domains), 1))
        layer = DomainBatchNorm(
            int(plain.num_features),  # type: ignore[arg-type]
            self.domains,
            affine=self.affine if plain.weight is not None else None,
            plain=nn.BatchNorm1d if isinstance(plain, nn.BatchNorm1d) else nn.BatchNorm2d,
            eps=plain.eps,  # type: ignore[arg-type]
            momentum=plain.momentum,  # type: ignore[arg-type]
        )
        state = plain.state_dict()
        layer.to(state["running_mean"].device, state["running_mean"].dtype)
        layer.load_state_dict({key: state[key] for key in layer.state_dict() if key in state})
        layer.sync = isinstance(plain, nn.SyncBatchNorm)
        copy_flags_and_hooks(layer, plain)
        if type(plain).__name__ in FUSED_NORMS:
            layer.drop, layer.act = plain.drop, plain.act  # type: ignore[assignment]
        return layer


def _as_tuple(names: Sequence[str]) -> tuple[str, ...]:
    """Make a tuple of the names; a string, whose letters would be taken for names, and what is no list stay."""
    return names if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)  # type: ignore[return-value]


def camera_batchnorm(domains: Sequence[str], affine: str = "shared") -> DomainPolicy:
    """Make the policy of camera-based BN (Zhuang et al., ECCV 2020): statistics for every camera.

    Args:
        domains: The names of the cameras.
        affine: "shared", or "domain" for one scale and shift for each camera.

    Returns:
        A policy for :func:`convert_norm`.

    Raises:
        ConfigError: If the names are no list of distinct names.

    Example:
        >>> camera_batchnorm(["door", "yard"]).domains
        ('door', 'yard')
    """
    return DomainPolicy("camera", _as_tuple(domains), affine)


def modality_batchnorm(domains: Sequence[str] = ("visible", "infrared"), affine: str = "shared") -> DomainPolicy:
    """Make the policy of modality BN (Li et al., arXiv 2103.04778): statistics for every modality.

    Args:
        domains: The names of the modalities.
        affine: "shared", or "domain" for one scale and shift for each modality.

    Returns:
        A policy for :func:`convert_norm`.

    Raises:
        ConfigError: If the names are no list of distinct names.

    Example:
        >>> modality_batchnorm().domains
        ('visible', 'infrared')
    """
    return DomainPolicy("modality", _as_tuple(domains), affine)


def domain_batchnorm(domains: Sequence[str], affine: str = "domain") -> DomainPolicy:
    """Make the policy of domain-specific BN (Chang et al., CVPR 2019): statistics and affine for every domain.

    Args:
        domains: The names of the domains.
        affine: "domain", or "shared" for one scale and shift for all.

    Returns:
        A policy for :func:`convert_norm`.

    Raises:
        ConfigError: If the names are no list of distinct names.

    Example:
        >>> domain_batchnorm(["person", "vehicle"]).affine
        'domain'
    """
    return DomainPolicy("category", _as_tuple(domains), affine)
