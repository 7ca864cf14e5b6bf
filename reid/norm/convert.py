"""Turn the BatchNorm layers of any network into layers with a domain for every camera, modality or data set.

Every function here takes a network and returns a new one; the network given stays as it is.  Layers
that keep no statistics (LayerNorm, GroupNorm, InstanceNorm) have nothing to keep per domain and stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reid.errors import ConditionError, ConfigError, unknown_name
from reid.norm.layer import AFFINES, DomainBatchNorm
from reid.norm.stats import Stats

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
STATELESS_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.LocalResponseNorm)
FUSED_NORM = "BatchNormAct2d"  # timm's BatchNorm2d that also drops and activates


@dataclass(frozen=True)
class DomainPolicy:
    """Statistics for every name of ``names``; ``kind`` says what the names are.

    ``affine`` "shared": one weight and bias for all domains (camera-based BN, modality BN), which keeps
    their embeddings comparable; "domain": one each (domain-specific BN, Chang et al. 2019).
    """

    kind: str
    names: tuple[str, ...]
    affine: str = "shared"

    def __post_init__(self) -> None:
        if not isinstance(self.names, tuple):
            raise ConfigError(f"{self.kind} norm: expected a list of {self.kind} names, got {self.names!r}")
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f"{self.kind} norm: expected distinct {self.kind} names, got {list(self.names)}")
        if self.affine not in AFFINES:
            raise ConfigError(unknown_name("affine", self.affine, AFFINES))

    def build(self, plain: nn.Module) -> DomainBatchNorm:
        """The layer with these domains that computes what ``plain`` (a BatchNorm) does, in every domain."""
        channels, momentum = int(plain.num_features), plain.momentum  # type: ignore[arg-type]
        affine = self.affine if plain.weight is not None else None
        layer = DomainBatchNorm(
            channels,
            self.names,
            affine=affine,
            plain=nn.BatchNorm1d if isinstance(plain, nn.BatchNorm1d) else nn.BatchNorm2d,
            eps=plain.eps,  # type: ignore[arg-type]
            momentum=momentum,  # type: ignore[arg-type]
        )
        state = plain.state_dict()
        layer.to(state["running_mean"].device, state["running_mean"].dtype)
        layer.load_state_dict({key: state[key] for key in layer.state_dict() if key in state})
        _match(layer, plain)
        if type(plain).__name__ == FUSED_NORM:
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
    return DomainPolicy("domain", _listed(names), affine)


POLICIES: dict[str, Callable[..., DomainPolicy]] = {
    "camera": camera_batchnorm,
    "modality": modality_batchnorm,
    "domain": domain_batchnorm,
}


def convert_norm(network: nn.Module, policy: DomainPolicy) -> nn.Module:
    """A copy of ``network`` whose BatchNorm layers, the neck's included, have the domains of ``policy``.

    Call the copy as ``Given(copy)(images, domain)``.  Until it is trained or calibrated it gives, in
    every domain, exactly what ``network`` gives.  Training flags, frozen parameters, dtype and device
    carry over; a layer used in two places stays one layer.  Raises ConfigError, naming the module, for
    a norm it does not know, and for a network without BatchNorm.
    """
    if not isinstance(network, nn.Module) or not isinstance(policy, DomainPolicy):
        raise ConfigError(
            "convert_norm: expected a network and a policy such as camera_batchnorm([...]), got"
            f" {type(network).__name__} and {type(policy).__name__}"
        )
    found: list[DomainBatchNorm] = []

    def convert(name: str, layer: nn.Module) -> nn.Module | None:
        if not _is_plain_norm(name, layer):
            return None
        found.append(policy.build(layer))
        return found[-1]

    converted = replace_modules(copy.deepcopy(network), convert)
    if not found:
        raise ConfigError(
            f"{type(network).__name__} has no BatchNorm layer, so there are no statistics to keep per {policy.kind}"
        )
    return converted


def norm_layers(network: nn.Module) -> dict[str, DomainBatchNorm]:
    """The converted layers of a network by module name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, DomainBatchNorm)}


def domains_of(network: nn.Module) -> tuple[str, ...]:
    """The domain names of a converted network in the order of their indices; () for a plain one."""
    layers = list(norm_layers(network).values())
    return layers[0].domains if layers else ()


def add_domain(network: nn.Module, name: str, like: str | None = None) -> nn.Module:
    """A copy of a converted network with one more domain, last.

    Its statistics are those of domain ``like``, or the mixture of all domains, each with equal weight;
    the other domains keep theirs bit for bit.
    """
    domains = domains_of(network)
    if name in domains:
        raise ConfigError(f'domain "{name}" exists already; known: {", ".join(domains)}')
    row = None if like is None else _row_of(domains, like)

    def extend(_: str, layer: nn.Module) -> nn.Module | None:
        return with_row(layer, name, row) if isinstance(layer, DomainBatchNorm) else None

    return replace_modules(copy.deepcopy(network), extend)


def extract(network: nn.Module, domain: str) -> nn.Module:
    """A copy with plain torch.nn BatchNorm that computes what ``network`` does for one domain."""
    row = _row_of(domains_of(network), domain)

    def plain(_: str, layer: nn.Module) -> nn.Module | None:
        return _plain_layer(layer, row) if isinstance(layer, DomainBatchNorm) else None

    return replace_modules(copy.deepcopy(network), plain)


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


def _is_plain_norm(name: str, layer: nn.Module) -> bool:
    """Whether to convert a layer; ConfigError for one that keeps statistics we do not know how to keep."""
    if type(layer) in PLAIN_NORMS or type(layer).__name__ == FUSED_NORM:
        if getattr(layer, "running_mean", None) is None:
            raise ConfigError(f"{name}: this BatchNorm tracks no statistics, so it has none to keep per domain")
        return True
    known = isinstance(layer, STATELESS_NORMS) and not getattr(layer, "track_running_stats", False)
    if not known and isinstance(getattr(layer, "running_mean", None), Tensor):
        raise ConfigError(
            f"{name}: cannot convert a {type(layer).__name__}; expected BatchNorm1d, BatchNorm2d or timm's {FUSED_NORM}"
        )
    return False


def _match(new: nn.Module, old: nn.Module) -> None:
    """Carry over what is not state: the training flag, frozen parameters and hooks."""
    new.train(old.training)
    for key, parameter in new.named_parameters(recurse=False):
        parameter.requires_grad_(getattr(old, key).requires_grad)
    new._forward_hooks.update(old._forward_hooks)
    new._forward_pre_hooks.update(old._forward_pre_hooks)


def _row_of(domains: Sequence[str], name: str) -> int:
    if name not in domains:
        raise ConditionError(unknown_name("domain", name, domains))
    return list(domains).index(name)


def with_row(layer: DomainBatchNorm, name: str, row: int | None) -> DomainBatchNorm:
    """The layer with one more domain: a copy of ``row``, or the equal mixture of all when None."""
    count = len(layer.domains)
    mean, var = layer.running_mean.view(count, -1), layer.running_var.view(count, -1)
    mixture = Stats(mean, var, torch.ones_like(mean[:, 0])).total()
    new_mean, new_var = (mixture.mean, mixture.var) if row is None else (mean[row : row + 1], var[row : row + 1])
    tracked = layer.num_batches_tracked.view(-1)
    state = {
        "running_mean": torch.cat([mean, new_mean]),
        "running_var": torch.cat([var, new_var]),
        "num_batches_tracked": torch.cat([tracked, torch.zeros_like(tracked[:1])]),
    }
    for key, parameter in layer.named_parameters(recurse=False):
        state[key] = parameter.detach()
        if layer.affine == "domain":
            rows = state[key].view(count, -1)
            state[key] = torch.cat([rows, rows.mean(0, keepdim=True) if row is None else rows[row : row + 1]])
    return with_state(layer, (*layer.domains, name), state)


def select_rows(layer: DomainBatchNorm, names: Sequence[str]) -> DomainBatchNorm:
    """The layer with just the domains ``names``, in that order."""
    rows = [_row_of(layer.domains, name) for name in names]
    count = len(layer.domains)
    state = {}
    for key, value in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        own = key not in ("weight", "bias") or layer.affine == "domain"
        state[key] = value.detach().view(count, -1)[rows] if own else value.detach()
    state["num_batches_tracked"] = state["num_batches_tracked"].view(-1)
    return with_state(layer, names, state)


def with_state(layer: DomainBatchNorm, domains: Sequence[str], state: Mapping[str, Tensor]) -> DomainBatchNorm:
    """A layer like ``layer`` with other domains and the state that goes with them."""
    new = DomainBatchNorm(
        layer.channels,
        domains,
        affine=layer.affine,
        plain=layer.plain,
        eps=layer.eps,
        momentum=layer.momentum,
    )
    rows = {"running_mean", "running_var", "num_batches_tracked"}
    squeezed = {k: v.squeeze(0) if len(new.domains) == 1 and k in rows else v for k, v in state.items()}
    new.to(layer.running_mean.device, layer.running_mean.dtype).load_state_dict(squeezed)
    _match(new, layer)
    new.drop, new.act = layer.drop, layer.act
    return new


def _plain_layer(layer: DomainBatchNorm, row: int) -> nn.Module:
    """torch.nn's BatchNorm with the statistics of one domain (and timm's fused activation after it)."""
    plain = layer.plain(layer.channels, layer.eps, layer.momentum, layer.affine is not None)
    state = {}
    for key, value in layer.state_dict().items():
        if isinstance(value, Tensor):
            own = len(layer.domains) > 1 and (key not in ("weight", "bias") or layer.affine == "domain")
            state[key] = value[row] if own else value
    plain.to(layer.running_mean.device, layer.running_mean.dtype).load_state_dict(state)
    _match(plain, layer)
    if isinstance(layer.drop, nn.Identity) and isinstance(layer.act, nn.Identity):
        return plain
    return nn.Sequential(plain, layer.drop, layer.act)
