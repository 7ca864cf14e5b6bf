"""Residual adapters: convolutions that all domains share, each with a small 1x1 map A_d for every domain d.

* "parallel": W * x + A_d x (Rebuffi, Bilen, Vedaldi, CVPR 2018);
* "series": y + A_d BN_d(y) with y = W * x (Rebuffi, Bilen, Vedaldi, NIPS 2017).

Both were published together with norms for each domain, so the usual network is
``add_adapters(convert_norm(network, domain_batchnorm(names)), names)``.  :mod:`reid.norm.added_domain` trains one
domain and leaves the others as they are; :mod:`reid.norm.specialised.covnorm` makes a trained adapter smaller.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, ConfigError, unknown_name
from reid.norm.batchnorm_layer import DomainBatchNorm
from reid.norm.condition import Condition, current_condition
from reid.norm.convert import add_domain, domain_index, domains_of, replace_modules
from reid.norm.domain_rows import NamedRows

PLACEMENTS = ("series", "parallel")


class FullAdapter(nn.Module):
    """The map A x of one domain from I to O channels at every position: (B, I, H, W) -> (B, O, H, W)."""

    keys = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        """``weight``: A (O, I)."""
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight[:, :, None, None])

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return A (O, I) and b (O,) of the map A x + b."""
        return self.weight, self.weight.new_zeros(len(self.weight))


class LowRankAdapter(nn.Module):
    """The map C M W x + b of one domain, which :mod:`reid.norm.specialised.covnorm` computes from a trained adapter.

    Args:
        whiten: W (J, I).
        mini: The mini-adaptation M (K, J).
        offset: b (O,).
        recolour: C (O, K).
    """

    keys = ("whiten", "mini", "offset", "recolour")

    def __init__(self, whiten: Tensor, mini: Tensor, offset: Tensor, recolour: Tensor) -> None:
        super().__init__()
        self.whiten, self.mini = nn.Parameter(whiten), nn.Parameter(mini)
        self.offset, self.recolour = nn.Parameter(offset), nn.Parameter(recolour)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.conv2d(functional.conv2d(x, self.whiten[:, :, None, None]), self.mini[:, :, None, None])
        return functional.conv2d(inner, self.recolour[:, :, None, None], self.offset)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return A (O, I) and b (O,) of the map A x + b."""
        return self.recolour @ self.mini @ self.whiten, self.offset


Adapter = FullAdapter | LowRankAdapter


class AdaptedConv2d(NamedRows, nn.Conv2d):
    """A convolution that all domains share, with an adapter for each of them that adds nothing at first.

    In its state ``weight`` and ``bias`` keep their names, ``adapters.<row>`` are the adapters, and ``norm`` is the
    BatchNorm before the adapters of "series".  The names of the domains are saved with the state; a state that has the
    same names in another order is loaded by name.

    The domain of each image comes from :class:`~reid.norm.Given`.  Where the images of a batch are sorted by domain,
    each adapter runs on its own images; otherwise each image is multiplied with its own matrix, in one pass.
    """

    def __init__(self, plain: nn.Conv2d, domains: Sequence[str], placement: str) -> None:
        """Take over the parameters (the same objects), device, dtype, training flag and hooks of ``plain``."""
        super().__init__(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]
            plain.stride,  # type: ignore[arg-type]
            plain.padding,  # type: ignore[arg-type]
            plain.dilation,  # type: ignore[arg-type]
            plain.groups,
            plain.bias is not None,
            plain.padding_mode,
            device="meta",
        )
        self.weight, self.bias = plain.weight, plain.bias
        self.domains, self.placement = tuple(domains), placement
        inputs = plain.out_channels if placement == "series" else plain.in_channels
        self.adapters = nn.ModuleList(FullAdapter(self._zeros(inputs)) for _ in self.domains)
        if placement == "series":
            norm = DomainBatchNorm(inputs, self.domains, affine="domain")
            self.norm = norm.to(plain.weight.device, plain.weight.dtype)
        self.train(plain.training)
        self._forward_hooks.update(plain._forward_hooks)
        self._forward_pre_hooks.update(plain._forward_pre_hooks)

    def extra_repr(self) -> str:
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, {self.placement} adapters for {len(self.domains)} domains"

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, I, H, W) to (B, O, H', W')."""
        y = super().forward(x)
        if self.placement == "series":
            return y + self._adapt(self.norm(y))
        rows, columns = self.stride
        return y + self._adapt(x[:, :, ::rows, ::columns])

    def append(self, name: str, adapter: Adapter | None = None) -> None:
        """Add a domain at the end, with an adapter that adds nothing unless one is given."""
        if adapter is None:
            inputs = self.adapter(0).affine()[0].shape[1]
            adapter = FullAdapter(self._zeros(inputs)).train(self.training)
        self.adapters.append(adapter)
        self.domains = (*self.domains, name)

    def adapter(self, row: int) -> Adapter:
        """Return the adapter of a domain by its index."""
        return cast(Adapter, self.adapters[row])

    def _zeros(self, inputs: int) -> Tensor:
        return self.weight.detach().new_zeros(self.out_channels, inputs)

    def _adapt(self, x: Tensor) -> Tensor:
        condition = current_condition() or Condition()
        domain, groups = condition.domain, condition.runs
        if domain is None:
            if len(self.domains) > 1:
                raise ConditionError(
                    f"this network has adapters by domain ({', '.join(self.domains)}) and was given none:"
                    " call Given(network)(images, domain)"
                )
            domain = 0
        if isinstance(domain, int):
            return self._adapt_one_domain(x, domain)
        if domain.is_floating_point():
            raise ConditionError("adapters need one domain for each image: give int64 indices (B,), not weights (B, G)")
        if groups is None:
            return self._adapt_any_order(x, domain)
        runs = torch.split(x, [rows for _, rows in groups])
        return torch.cat([self._adapt_one_domain(run, row) for run, (row, _) in zip(runs, groups, strict=True)])

    def _adapt_one_domain(self, x: Tensor, domain: int) -> Tensor:
        if not 0 <= domain < len(self.domains):
            raise ConditionError(f"domain {domain} is out of range: this network has {len(self.domains)}")
        adapted: Tensor = self.adapter(domain)(x)
        return adapted

    def _adapt_any_order(self, x: Tensor, domain: Tensor) -> Tensor:
        maps = [self.adapter(row).affine() for row in range(len(self.domains))]
        matrices, offsets = (torch.stack(parts)[domain] for parts in zip(*maps, strict=True))  # (B, O, I), (B, O)
        y = torch.baddbmm(offsets[:, :, None], matrices, x.flatten(2))
        return y.view(len(x), -1, *x.shape[2:])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Order the adapters by the names of their domains, and give each the form (full or low rank) of its state."""
        order = self.row_order(state_dict, prefix, args[-1])
        if order is None:
            return
        stem = f"{prefix}adapters."
        found = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(stem)}
        for row, saved_row in enumerate(order):
            old = f"{stem}{saved_row}."
            state = {key.removeprefix(old): value for key, value in found.items() if key.startswith(old)}
            state_dict.update({f"{stem}{row}.{key}": value for key, value in state.items()})
            self.adapters[row] = _in_form_of(self.adapter(row), state)
        super()._load_from_state_dict(state_dict, prefix, *args)


def add_adapters(network: nn.Module, domains: Sequence[str], placement: str = "series") -> nn.Module:
    """Add an adapter for every domain at each convolution that can have one.

    These are the ``nn.Conv2d`` (not subclasses) with a kernel larger than 1x1 that are not depthwise; for "parallel"
    their padding must also keep the size of the map up to the stride, as 1 does for 3x3.  Adapters start with zeros, so
    the copy computes what ``network`` computes, in every domain.

    Args:
        network: The network; it does not change.
        domains: The names of the domains.  They must be those of the network's norms where these have any.
        placement: "series" or "parallel".

    Returns:
        A copy of the network; call it as ``Given(copy)(images, domain)``.

    Raises:
        ConfigError: If there is no such convolution, or a domain or the placement cannot be used.

    Example:
        >>> from reid.norm import Given
        >>> network = add_adapters(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), ["person", "vehicle"])
        >>> Given(network)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])).shape
        torch.Size([2, 8, 8, 8])
        >>> adapter_domains(network)
        ('person', 'vehicle')
    """
    if placement not in PLACEMENTS:
        raise ConfigError(unknown_name("placement of adapters", placement, PLACEMENTS))
    if isinstance(domains, str) or not domains or len(set(domains)) != len(domains):
        raise ConfigError(f"adapters: expected a list of distinct domain names, got {domains!r}")
    known = domains_of(network)
    if known and known != tuple(domains):
        raise ConfigError(f"adapters: expected the domains of the network's norms, {list(known)}, got {list(domains)}")
    found: list[AdaptedConv2d] = []

    def adapt(_: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Conv2d or not _can_have_adapter(layer, placement):
            return None
        found.append(AdaptedConv2d(layer, domains, placement))
        return found[-1]

    adapted = replace_modules(copy.deepcopy(network), adapt)
    if not found:
        raise ConfigError(
            f"{type(network).__name__} has no full convolution larger than 1x1 to put {placement} adapters at"
        )
    return adapted


def adapted_layers(network: nn.Module) -> dict[str, AdaptedConv2d]:
    """Return the convolutions with adapters by module name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, AdaptedConv2d)}


def add_adapter_domain(network: nn.Module, name: str, like: str | None = None) -> nn.Module:
    """Add a domain to adapters and norms; the other domains compute the same to the bit.

    Args:
        network: A network with adapters; it does not change.
        name: The new domain, which becomes the last.
        like: The domain whose adapters and norms are copied.  By default the adapters add nothing, and the norms are as
            in :func:`reid.norm.add_domain`.

    Returns:
        A copy of the network with one more domain.

    Raises:
        ConfigError: If the domain exists already, or ``like`` does not.
    """
    domains = adapter_domains(network)
    if name in domains:
        raise ConfigError(f'domain "{name}" exists already; known: {", ".join(domains)}')
    row = None if like is None else domain_index(domains, like)
    new = add_domain(network, name, like) if domains_of(network) else copy.deepcopy(network)
    for layer in adapted_layers(new).values():
        layer.append(name, None if row is None else copy.deepcopy(layer.adapter(row)))
    return new


def adapter_domains(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the adapters' domains by index, or of the norms' domains where there are no adapters."""
    layers = adapted_layers(network)
    return next(iter(layers.values())).domains if layers else domains_of(network)


def _can_have_adapter(layer: nn.Conv2d, placement: str) -> bool:
    if max(layer.kernel_size) == 1 or (layer.groups > 1 and layer.groups == layer.in_channels):
        return False
    if placement == "series":
        return True
    if isinstance(layer.padding, str):
        return layer.padding == "same"
    sides = zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
    return all(2 * padding == dilation * (kernel - 1) for padding, dilation, kernel in sides)


def _in_form_of(adapter: Adapter, state: Mapping[str, Tensor]) -> Adapter:
    """The adapter, or an empty one of the form that ``state`` (keys of one adapter) has, where the sizes agree."""
    adapter_class: type[Adapter] = LowRankAdapter if "mini" in state else FullAdapter
    if not set(adapter_class.keys) <= set(state):
        return adapter
    first, last = state[adapter_class.keys[0]], state[adapter_class.keys[-1]]
    if (len(last), first.shape[1]) != adapter.affine()[0].shape:  # (O, I)
        return adapter  # it is of another network, and loading it raises an error
    like = next(adapter.parameters())
    empty = (torch.empty_like(state[key], device=like.device, dtype=like.dtype) for key in adapter_class.keys)
    return adapter_class(*empty).train(adapter.training)
