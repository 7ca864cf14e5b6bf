"""Turn the BatchNorm layers of any network into layers with a domain for every camera, modality or data set.

Every function here takes a network and returns a new one; the network given stays as it is.  Layers
that keep no statistics (LayerNorm, GroupNorm, InstanceNorm) have nothing to keep per domain and stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from reid.errors import ConditionError, ConfigError, unknown_name
from reid.norm.assignment import LatentDomains
from reid.norm.domain_batchnorm import AFFINES, DomainBatchNorm
from reid.norm.domain_rows import carry_over
from reid.norm.domain_whitening import DomainWhitening
from reid.norm.systems import SYSTEMS

NormLayer = DomainBatchNorm | DomainWhitening
PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
STATELESS_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.LocalResponseNorm)
FUSED_NORMS = ("BatchNormAct2d", "SyncBatchNormAct")  # timm's, which also drop and activate


@dataclass(frozen=True)
class DomainPolicy:
    """Statistics for every name of ``names``; ``kind`` says what the names are.

    ``affine`` "shared": one weight and bias for all domains (camera-based BN, modality BN), which keeps
    their embeddings comparable; "domain": one each (domain-specific BN, Chang et al. 2019).  ``system`` is
    the member of the family (:data:`~reid.norm.systems.SYSTEMS`) that the first layers, or all, become; the
    others are BatchNorm per domain.  Without names there is one domain: plain BatchNorm.
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
        """The layer that takes the place of ``plain``, a BatchNorm or a layer of ours without domains.

        It is of the policy's ``system`` if it is ``special`` and the system can take it, else BatchNorm per
        domain, which computes what ``plain`` does, in every domain.
        """
        layer, system = self._domains(plain), SYSTEMS[self.system]
        if not special or not system.takes(layer):
            return layer
        return system.change(layer).train(plain.training)

    def _domains(self, plain: nn.Module) -> DomainBatchNorm:
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
        carry_over(layer, plain)
        if type(plain).__name__ in FUSED_NORMS:
            layer.drop, layer.act = plain.drop, plain.act  # type: ignore[assignment]
        return layer


def _listed(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; a single string, whose letters would be taken for names, and what is no list stay."""
    return names if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)  # type: ignore[return-value]


def camera_batchnorm(names: Sequence[str], affine: str = "shared") -> DomainPolicy:
    """Camera-based BN (Zhuang et al., ECCV 2020): own statistics for every camera of ``names``."""
    return DomainPolicy("camera", _listed(names), affine)


def modality_batchnorm(names: Sequence[str] = ("visible", "infrared"), affine: str = "shared") -> DomainPolicy:
    """Modality BN (Li et al., arXiv 2103.04778): own statistics for every modality of ``names``."""
    return DomainPolicy("modality", _listed(names), affine)


def domain_batchnorm(names: Sequence[str], affine: str = "domain") -> DomainPolicy:
    """Domain-specific BN (Chang et al., CVPR 2019): statistics and affine for every domain of ``names``."""
    return DomainPolicy("category", _listed(names), affine)


POLICIES: dict[str, Callable[..., DomainPolicy]] = {
    "camera": camera_batchnorm,
    "modality": modality_batchnorm,
    "domain": domain_batchnorm,
}


def convert_norm(network: nn.Module, policy: DomainPolicy) -> nn.Module:
    """A copy of ``network`` whose BatchNorm layers, the neck's included, have the domains of ``policy``.

    Call the copy as ``Given(copy)(images, domain)``.  Until it is trained or calibrated a copy of system "batch"
    gives, in every domain, exactly what ``network`` gives.  Training flags, frozen parameters, dtype and device
    carry over; a layer used in two places stays one layer.  Raises ConfigError, naming the module, for
    a norm it does not know, and for a network without BatchNorm.
    """
    if not isinstance(network, nn.Module) or not isinstance(policy, DomainPolicy):
        raise ConfigError(
            "convert_norm: expected a network and a policy such as camera_batchnorm([...]), got"
            f" {type(network).__name__} and {type(policy).__name__}"
        )
    places = [name for name, layer in network.named_modules() if _is_convertible(name, layer)]
    if not places:
        raise ConfigError(
            f"{type(network).__name__} has no BatchNorm layer, so there are no statistics to keep per {policy.axis}"
        )

    before = system_of(network)
    if "batch" not in (before, policy.system):
        raise ConfigError(f'this network has norm system "{before}" already; convert the plain network instead')
    special = {places[index] for index in SYSTEMS[policy.system].places(len(places))}

    def convert(name: str, layer: nn.Module) -> nn.Module | None:
        return policy.build(layer, special=name in special) if name in places else None

    converted = replace_modules(copy.deepcopy(network), convert)
    converted.norm_system = policy.system if before == "batch" else before  # type: ignore[assignment]
    if SYSTEMS[policy.system].latent:
        first = next(layer for layer in converted.modules() if isinstance(layer, DomainBatchNorm))
        branch = LatentDomains(len(policy.domains)).to(first.running_mean.device, first.running_mean.dtype)
        first.branch = branch.train(first.training)
    return converted


def norm_layers(network: nn.Module) -> dict[str, NormLayer]:
    """The converted layers of a network by module name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, NormLayer)}


def domains_of(network: nn.Module) -> tuple[str, ...]:
    """The domain names of a converted network in the order of their indices; () for a plain one."""
    layers = list(norm_layers(network).values())
    return layers[0].domains if layers else ()


def system_of(network: nn.Module) -> str:
    """The name of the member of the family (:data:`~reid.norm.systems.SYSTEMS`) that a network was made."""
    return str(getattr(network, "norm_system", "batch"))


def mixes_domains(network: nn.Module) -> bool:
    """Whether what a domain gets depends on the images of others (DIAL, TransNorm): measure them together then."""
    layers = [layer for layer in norm_layers(network).values() if isinstance(layer, DomainBatchNorm)]
    return any(layer.source.mixes or layer.transfer is not None for layer in layers)


def add_domain(network: nn.Module, name: str, like: str | None = None) -> nn.Module:
    """A copy of a converted network with one more domain, last.

    Its statistics are those of domain ``like``, or the mixture of all domains, each with equal weight;
    the other domains keep theirs bit for bit.
    """
    domains = domains_of(network)
    if not domains:
        raise ConfigError(f'domain "{name}" cannot be added: this network has no domains yet; use convert_norm')
    if name in domains:
        raise ConfigError(f'domain "{name}" exists already; known: {", ".join(domains)}')
    row = None if like is None else row_of(domains, like)
    return take_rows(network, (*domains, name), [*range(len(domains)), row])


def extract(network: nn.Module, domain: str) -> nn.Module:
    """A copy without domains that computes what ``network`` does for one of them.

    Where a layer is plain BatchNorm, or a whitening, it becomes one of torch.nn's own layers.
    """
    row, copied = row_of(domains_of(network), domain), copy.deepcopy(network)
    new = {id(layer): layer.alone(row) for layer in norm_layers(copied).values()}
    plain = replace_modules(copied, lambda _, layer: new.get(id(layer)))
    if not norm_layers(plain):
        plain.norm_system = "batch"  # type: ignore[assignment]
    return plain


def take_rows(network: nn.Module, names: Sequence[str], rows: Sequence[int | None]) -> nn.Module:
    """A copy of a converted network whose layers have the domains ``names``, from their rows ``rows``."""
    copied = copy.deepcopy(network)
    new = {id(layer): layer.take_rows(names, rows) for layer in norm_layers(copied).values()}
    return replace_modules(copied, lambda _, layer: new.get(id(layer)))


def replace_modules(network: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Put ``replacement(name, module)``, where it is not None, in the place of each module of ``network``.

    Each module object is asked for once, so a module shared by two places stays shared.  Works in place;
    returns the root, which may itself have been replaced.
    """
    memo: dict[int, nn.Module] = {}
    originals: list[nn.Module] = []  # kept alive, so that an id in the memo cannot be given out again

    def visit(name: str, module: nn.Module) -> nn.Module:
        if id(module) in memo:
            return memo[id(module)]
        new = replacement(name, module)
        memo[id(module)] = module if new is None else new
        originals.append(module)
        if new is None:
            for child_name, child in list(module._modules.items()):
                if child is not None:
                    module._modules[child_name] = visit(f"{name}.{child_name}".lstrip("."), child)
        return memo[id(module)]

    return visit("", network)


def _is_convertible(name: str, layer: nn.Module) -> bool:
    """Whether to convert a layer; ConfigError for one that keeps statistics we do not know how to keep."""
    if isinstance(layer, NormLayer) and layer.domains:
        raise ConfigError(
            f"{name}: this network has domains already ({', '.join(layer.domains)}); use add_domain, or convert the"
            " plain network"
        )
    if isinstance(layer, DomainBatchNorm):
        return True
    if type(layer) in PLAIN_NORMS or type(layer).__name__ in FUSED_NORMS:
        if getattr(layer, "running_mean", None) is None:
            raise ConfigError(f"{name}: this BatchNorm tracks no statistics, so it has none to keep per domain")
        return True
    known = isinstance(layer, STATELESS_NORMS) and not getattr(layer, "track_running_stats", False)
    kept = (getattr(layer, key, None) for key in ("running_mean", "running_var"))
    if not known and any(isinstance(value, Tensor) for value in kept):
        raise ConfigError(
            f"{name}: cannot convert a {type(layer).__name__}; expected BatchNorm1d, BatchNorm2d, SyncBatchNorm"
            f" or timm's {' or '.join(FUSED_NORMS)}"
        )
    return False


def row_of(domains: Sequence[str], name: str) -> int:
    """The index of a domain; ConditionError that lists the known ones."""
    if name not in domains:
        raise ConditionError(unknown_name("domain", name, domains))
    return list(domains).index(name)
