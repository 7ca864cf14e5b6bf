"""Turn the BatchNorm layers of any network into layers with a domain for every camera, modality or category.

Every function here takes a network and returns a new one; the network given stays as it is.  Layers that keep no
statistics (LayerNorm, GroupNorm, InstanceNorm) stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from reid.errors import ConditionError, ConfigError, unknown_name
from reid.norm.assignment import LatentDomains
from reid.norm.batchnorm_layer import DomainBatchNorm
from reid.norm.domain_embedding import DomainEmbedding
from reid.norm.domain_policy import FUSED_NORMS, DomainPolicy
from reid.norm.domain_whitening import DomainWhitening
from reid.norm.systems import SYSTEMS

NormLayer = DomainBatchNorm | DomainWhitening
DomainLayer = NormLayer | DomainEmbedding
PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
STATELESS_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.LocalResponseNorm)


def convert_norm(network: nn.Module, policy: DomainPolicy) -> nn.Module:
    """Convert the BatchNorm layers of a network, the neck's included, to layers with the domains of a policy.

    Call the result as ``Given(converted)(images, domain)``.  Until it is trained or calibrated, a network of system
    "batch" computes in every domain exactly what ``network`` does.  Training flags, frozen parameters, dtype and
    device carry over; a layer that is used twice stays one layer.

    Args:
        network: Any network with BatchNorm layers; it stays as it is.
        policy: The domains and what the layers do with them, such as ``camera_batchnorm([...])``.

    Returns:
        A converted copy.

    Raises:
        ConfigError: If the network has no BatchNorm, has domains already, or has a norm that cannot be converted; the
            message names the module.

    Example:
        >>> from reid.norm import camera_batchnorm
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> converted = convert_norm(network, camera_batchnorm(["door", "yard"]))
        >>> converted[1].running_mean.shape
        torch.Size([2, 4])
    """
    if not isinstance(network, nn.Module) or not isinstance(policy, DomainPolicy):
        raise ConfigError(
            "convert_norm: expected a network and a policy such as camera_batchnorm([...]), got"
            f" {type(network).__name__} and {type(policy).__name__}"
        )
    convertible = [name for name, layer in network.named_modules() if _is_convertible(name, layer)]
    if not convertible:
        raise ConfigError(
            f"{type(network).__name__} has no BatchNorm layer, so there are no statistics to keep per {policy.axis}"
        )

    before = system_of(network)
    if "batch" not in (before, policy.system):
        raise ConfigError(f'this network has norm system "{before}" already; convert the plain network instead')
    special = {convertible[index] for index in SYSTEMS[policy.system].layers(len(convertible))}

    def convert(name: str, layer: nn.Module) -> nn.Module | None:
        if name not in convertible or (name not in special and SYSTEMS[policy.system].leaves_others):
            return None
        return policy.build(layer, special=name in special)

    converted = replace_modules(copy.deepcopy(network), convert)
    converted.norm_system = policy.system if before == "batch" else before  # type: ignore[assignment]
    if SYSTEMS[policy.system].latent:
        first = next(layer for layer in converted.modules() if isinstance(layer, DomainBatchNorm))
        branch = LatentDomains(len(policy.domains)).to(first.running_mean.device, first.running_mean.dtype)
        first.branch = branch.train(first.training)
    return converted


def norm_layers(network: nn.Module) -> dict[str, NormLayer]:
    """Find the converted layers of a network, by module name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, NormLayer)}


def domain_layers(network: nn.Module) -> dict[str, DomainLayer]:
    """Find the layers of a network with numbers for each domain by module name: norms, and embeddings of a domain."""
    return {name: m for name, m in network.named_modules() if isinstance(m, DomainLayer)}


def domains_of(network: nn.Module) -> tuple[str, ...]:
    """Return the domain names of a network in the order of their indices; () for a plain network.

    Example:
        >>> from reid.norm import camera_batchnorm
        >>> domains_of(convert_norm(nn.Sequential(nn.BatchNorm2d(4)), camera_batchnorm(["door", "yard"])))
        ('door', 'yard')
    """
    layers = list(domain_layers(network).values())
    return layers[0].domains if layers else ()


def system_of(network: nn.Module) -> str:
    """Return the name of the system (:data:`~reid.norm.systems.SYSTEMS`) that a network was converted to."""
    return str(getattr(network, "norm_system", "batch"))


def mixes_domains(network: nn.Module) -> bool:
    """Whether the statistics of a domain depend on the images of others (DIAL, TransNorm); then measure all at once."""
    layers = [layer for layer in norm_layers(network).values() if isinstance(layer, DomainBatchNorm)]
    return any(layer.source.mixes_domains or layer.transfer is not None for layer in layers)


def add_domain(network: nn.Module, name: str, like: str | None = None) -> nn.Module:
    """Add a domain to a converted network, last; the other domains stay bit for bit.

    Args:
        network: A converted network; it stays as it is.
        name: The name of the new domain.
        like: The domain whose statistics it gets; None for the mixture of all domains with equal weight.

    Returns:
        A copy with one more domain.

    Raises:
        ConfigError: If the network has no domains, has this one already, or cannot have more.
        ConditionError: If ``like`` is unknown.

    Example:
        >>> from reid.norm import camera_batchnorm
        >>> network = convert_norm(nn.Sequential(nn.BatchNorm2d(4)), camera_batchnorm(["door", "yard"]))
        >>> domains_of(add_domain(network, "gate", like="door"))
        ('door', 'yard', 'gate')
    """
    domains = domains_of(network)
    if not domains:
        raise ConfigError(f'domain "{name}" cannot be added: this network has no domains yet; use convert_norm')
    if name in domains:
        raise ConfigError(f'domain "{name}" exists already; known: {", ".join(domains)}')
    row = None if like is None else domain_index(domains, like)
    return take_rows(network, (*domains, name), [*range(len(domains)), row])


def extract(network: nn.Module, domain: str) -> nn.Module:
    """Make a network without domains that computes what ``network`` does for one of them.

    Args:
        network: A converted network; it stays as it is.
        domain: The name of the domain.

    Returns:
        A copy.  Where a layer is plain BatchNorm or a whitening, it becomes a layer of torch.nn.

    Raises:
        ConditionError: If the domain is unknown.

    Example:
        >>> from reid.norm import camera_batchnorm
        >>> network = convert_norm(nn.Sequential(nn.BatchNorm2d(4)), camera_batchnorm(["door", "yard"]))
        >>> type(extract(network, "yard")[0]).__name__
        'BatchNorm2d'
    """
    index, copied = domain_index(domains_of(network), domain), copy.deepcopy(network)
    new = {id(layer): layer.to_plain(index) for layer in domain_layers(copied).values()}
    plain = replace_modules(copied, lambda _, layer: new.get(id(layer)))
    if not norm_layers(plain):
        plain.norm_system = "batch"  # type: ignore[assignment]
    return plain


def take_rows(network: nn.Module, domains: Sequence[str], rows: Sequence[int | None]) -> nn.Module:
    """Make a copy of a converted network with other domains, from rows of its layers.

    Args:
        network: A converted network; it stays as it is.
        domains: The names of the new domains.
        rows: For each new domain the index of the old one whose numbers it gets, or None for the mixture of all.

    Returns:
        A copy with the new domains.
    """
    copied = copy.deepcopy(network)
    new: dict[int, nn.Module] = {id(layer): layer.take_rows(domains, rows) for layer in domain_layers(copied).values()}
    return replace_modules(copied, lambda _, layer: new.get(id(layer)))


def replace_modules(network: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Replace modules of a network in place.

    Each module object is replaced once, so a module that is used twice stays one module.

    Args:
        network: The network; it changes.
        replacement: Called with the name and the module; returns the new module, or None to look inside it.

    Returns:
        The root, which may itself be replaced.
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
    """Whether to convert a layer; raise ConfigError for one that keeps statistics in an unknown way."""
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
    statistics = (getattr(layer, key, None) for key in ("running_mean", "running_var"))
    if not known and any(isinstance(value, Tensor) for value in statistics):
        raise ConfigError(
            f"{name}: cannot convert a {type(layer).__name__}; expected BatchNorm1d, BatchNorm2d, SyncBatchNorm"
            f" or timm's {' or '.join(FUSED_NORMS)}"
        )
    return False


def domain_index(domains: Sequence[str], name: str) -> int:
    """Return the index of a domain; raise ConditionError, which lists the known ones, for an unknown name."""
    if name not in domains:
        raise ConditionError(unknown_name("domain", name, domains))
    return list(domains).index(name)
