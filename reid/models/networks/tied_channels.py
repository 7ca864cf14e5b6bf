"""Which channels of a network can only be removed together, found by following its maps from layer to layer.

A residual sum ties the channels of everything that is added, a gate ties those of the map that it scales, and a norm, a
depthwise convolution or a pooling passes each channel on by itself.  So a channel is removed wherever it is written,
passed on and read, and the network that remains computes exactly what the whole one computes with this channel at 0.
The channels of the image and of the embedding stay.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from reid.errors import ConfigError
from reid.models.networks.pooling import AveragePooling, GeneralizedMean
from reid.models.networks.resnet_changes import InstanceBatchNorm, NonLocal
from reid.norm import DomainBatchNorm

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)
POOLINGS = (AveragePooling, GeneralizedMean)
# What handles each channel by itself and turns zeros into zeros, or scales another map.
_FUNCTIONS = (
    torch.relu, functional.relu, functional.relu6, torch.sigmoid, functional.normalize, operator.add, operator.iadd,
    operator.mul, operator.imul, torch.add, torch.mul, functional.adaptive_avg_pool2d,
)  # fmt: skip
_METHODS = ("relu", "relu_", "sigmoid", "mean", "contiguous", "float", "clamp", "pow", "add", "add_", "mul", "mul_")
_STAY = "the channels of the image and of the embedding"


@dataclass(frozen=True)
class TiedChannels:
    """Channels that several layers have in common.

    Attributes:
        name: The first layer that writes them.
        size: C, how many there are.
        writers: Convolutions and linear layers that write them.
        readers: Convolutions and linear layers that read them.
        passers: Norms and depthwise convolutions that handle each of them by itself.
        first: The first so many are normalised for each image by itself (IBN-a), 0 where none are.
    """

    name: str
    size: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    passers: tuple[str, ...]
    first: int = 0

    def first_of(self, count: int) -> int:
        """Return how many of ``count`` channels that stay are among the first ones, in proportion."""
        return count * self.first // self.size


def tied_channels(network: nn.Module) -> tuple[TiedChannels, ...]:
    """Find all channels of a network that can be removed, in the order in which they are written.

    Args:
        network: An embedder, plain or with domains; it stays as it is.

    Raises:
        ConfigError: It is not a network of convolutions whose maps are added and scaled, such as a transformer.

    Example:
        >>> from reid.models.embedder import Embedder, NetworkSpec
        >>> first, second = tied_channels(Embedder(NetworkSpec("resnet18_x0_25")))[:2]
        >>> first.writers
        ('backbone.conv1', 'backbone.layer1.0.conv2', 'backbone.layer1.1.conv2')
        >>> second.name, second.size, second.readers
        ('backbone.layer1.0.conv1', 16, ('backbone.layer1.0.conv2',))
    """
    return _ChannelSearch(network).groups()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = (DomainBatchNorm, *POOLINGS, InstanceBatchNorm, NonLocal)
        return isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)


class _ChannelSearch:
    """Joins the channels of layers into groups while it follows the steps of the network."""

    def __init__(self, network: nn.Module) -> None:
        self._modules = dict(network.named_modules())
        self._parents: dict[Hashable, Hashable] = {}
        self._order: list[str] = []
        for node in _steps(network):
            self._visit(node)

    def groups(self) -> tuple[TiedChannels, ...]:
        """Return the groups whose channels can be removed."""
        roles: dict[Hashable, dict[str, list[str]]] = {}  # of each group its layers, by what they do with it
        for name in self._order:
            for role in ("written", "read", "passed"):
                if (name, role) in self._parents:
                    names = roles.setdefault(self._root((name, role)), {"written": [], "read": [], "passed": []})
                    names[role].append(name)
        roles.pop(self._root(_STAY), None)
        found = []
        for names in sorted(roles.values(), key=lambda one: self._order.index(one["written"][0])):
            name = names["written"][0]
            split = (self._modules[one] for one in names["passed"])
            first = next((one.first for one in split if isinstance(one, InstanceBatchNorm)), 0)
            written, read, passed = (tuple(one) for one in names.values())
            found.append(TiedChannels(name, _outputs(self._modules[name]), written, read, passed, first))
        return tuple(found)

    def _visit(self, node: fx.Node) -> None:
        given = [one for one in node.all_input_nodes if one.op != "get_attr"]
        if node.op in ("placeholder", "output"):
            self._join(_STAY, node, *given)
        elif node.op == "call_module":
            self._visit_layer(node, str(node.target), given[0])
        elif (node.target in _FUNCTIONS or (node.op == "call_method" and node.target in _METHODS)) and not (
            "add" in str(node.target) and len(given) < 2  # a constant would not be 0 where the channel is
        ):
            self._join(node, *given)
        else:
            raise ConfigError(f"its step {node.target} is none that channels can be followed through")

    def _visit_layer(self, node: fx.Node, name: str, given: fx.Node) -> None:
        layer = self._modules[name]
        if isinstance(layer, NonLocal):
            self._visit_attention(node, name, given)
            return
        if name not in self._order:
            self._order.append(name)
        if isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "groups", 1) == 1:
            self._join((name, "read"), given)
            self._join((name, "written"), node)
        elif _passes_channels(layer):
            self._join((name, "passed"), given, node)
        elif not list(layer.parameters()):
            self._join(given, node)
        else:
            raise ConfigError(f"its layer {name} ({type(layer).__name__}) is none that channels can be removed from")

    def _visit_attention(self, node: fx.Node, name: str, given: fx.Node) -> None:
        """The attention adds something to its input, and computes it in a few channels of its own, which stay."""
        for part in ("g", "theta", "phi"):
            self._join((f"{name}.{part}", "read"), given)
            self._join(_STAY, (f"{name}.{part}", "written"))
        self._join(_STAY, (f"{name}.W.0", "read"))
        self._join((f"{name}.W.0", "written"), (f"{name}.W.1", "passed"), given, node)
        parts = ("g", "theta", "phi", "W.0", "W.1")
        self._order += [f"{name}.{part}" for part in parts if f"{name}.{part}" not in self._order]

    def _root(self, one: Hashable) -> Hashable:
        self._parents.setdefault(one, one)
        while self._parents[one] != one:
            one = self._parents[one]
        return one

    def _join(self, *ones: Hashable) -> None:
        for one in ones[1:]:
            self._parents[self._root(one)] = self._root(ones[0])


def _passes_channels(layer: nn.Module) -> bool:
    """Whether a layer with numbers for each channel handles each channel by itself."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == layer.in_channels == layer.out_channels
    if isinstance(layer, DomainBatchNorm):
        return layer.is_plain_batchnorm
    return type(layer) in PLAIN_NORMS or isinstance(layer, InstanceBatchNorm | GeneralizedMean)


def _outputs(layer: nn.Module) -> int:
    return int(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)  # type: ignore[arg-type]


def _steps(network: nn.Module) -> Iterator[fx.Node]:
    """The steps of a network in their order."""
    try:
        graph = _Tracer().trace(network)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"its steps cannot be followed ({reason})") from error
    yield from graph.nodes
