"""Remove channels from a network, and rebuild a network of which channels were removed.

A network with fewer channels is described by the name of its backbone and by how many channels each group of
:func:`~reid.models.networks.tied_channels.tied_channels` still has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, unknown_name
from reid.models.networks.resnet_changes import InstanceBatchNorm
from reid.models.networks.tied_channels import TiedChannels, tied_channels

# Attributes that say how many channels a layer has on the side that is cut.
_WRITTEN, _READ = ("out_channels", "out_features"), ("in_channels", "in_features")
_PASSED = ("in_channels", "out_channels", "groups", "num_features", "channels")

Rows = tuple[Tensor | None, Tensor | None]  # outputs and inputs of a layer that stay; None for all


def keep_channels(network: nn.Module, kept: Mapping[str, Tensor]) -> nn.Module:
    """Make a network with fewer channels; it computes what ``network`` does with the other channels at 0.

    Args:
        network: An embedder, plain or with domains; it stays as it is.
        kept: For the name of a group of :func:`tied_channels` the indices of the channels that stay, (c,) int64 in
            increasing order.  A group that is not named keeps all.

    Returns:
        A smaller copy.

    Raises:
        ConfigError: A group is not known, or channels cannot be these.

    Example:
        >>> from reid.models.embedder import Embedder, NetworkSpec
        >>> network = Embedder(NetworkSpec("resnet18_x0_25"))
        >>> keep_channels(network, {"backbone.layer1.0.conv1": torch.tensor([0, 3, 5])}).backbone.layer1[0].conv1
        Conv2d(16, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    new = copy.deepcopy(network)
    groups = {group.name: group for group in tied_channels(new)}
    for name, rows in kept.items():
        if name not in groups:
            raise ConfigError(unknown_name("group of channels", name, groups))
        _check_rows(groups[name], rows)
        _cut_group(new, groups[name], rows)
    return new


def narrow_to(network: nn.Module, channels: Sequence[tuple[str, int]]) -> nn.Module:
    """Give a network that was just built fewer channels, as another network has them; the leading ones stay.

    Args:
        network: The network; it stays as it is.
        channels: The name of each group that is smaller, and its number of channels.

    Raises:
        ConfigError: A group is not known, or is not that large.
    """
    sizes = {group.name: group for group in tied_channels(network)}
    kept = {}
    for name, count in channels:
        if name not in sizes:
            raise ConfigError(unknown_name("group of channels", name, sizes))
        group = sizes[name]
        if not 1 <= count <= group.size:
            raise ConfigError(f"{name}: expected 1 to {group.size} channels, got {count}")
        kept[name] = leading_channels(group, count)
    return keep_channels(network, kept)


def leading_channels(group: TiedChannels, count: int) -> Tensor:
    """Return the indices of the leading channels, those of each part where a group has two: (count,) int64."""
    first = group.first_of(count)
    return torch.cat([torch.arange(first), torch.arange(group.first, group.first + count - first)])


def leading_rows(network: nn.Module, channels: Sequence[tuple[str, int]]) -> dict[str, Rows]:
    """Find which weights of a network a narrower one of its leading channels has.

    Args:
        network: The wide network.
        channels: The name of each group that is smaller, and its number of channels.

    Returns:
        For each convolution and linear layer its outputs and inputs that stay, None where all do.
    """
    counts = dict(channels)
    written: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    for group in tied_channels(network):
        if group.name in counts:
            rows = leading_channels(group, counts[group.name])
            written |= dict.fromkeys((*group.writers, *group.passers), rows)
            read |= dict.fromkeys(group.readers, rows)
    layers = (name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return {name: (written.get(name), read.get(name)) for name in layers}


def leading_weights(tensors: Mapping[str, Tensor], rows: Mapping[str, Rows]) -> dict[str, Tensor]:
    """Take the weights and biases of a narrow network out of those of a wide one.

    Args:
        tensors: The state of the wide network, or its parameters by name.
        rows: What :func:`leading_rows` found.

    Returns:
        The tensors of the convolutions and linear layers of the narrow network by name.
    """
    found = {}
    for name, (outputs, inputs) in rows.items():
        for key in ("weight", "bias"):
            tensor = tensors.get(f"{name}.{key}")
            if tensor is None:
                continue
            if outputs is not None:
                tensor = tensor.index_select(0, outputs.to(tensor.device))
            if inputs is not None and key == "weight":
                tensor = tensor.index_select(1, inputs.to(tensor.device))
            found[f"{name}.{key}"] = tensor
    return found


def reorder_channels(network: nn.Module, order: Mapping[str, Tensor]) -> nn.Module:
    """Make a network that computes the same with its channels in another order.

    Args:
        network: An embedder, plain or with domains; it stays as it is.
        order: For the name of a group the channels in their new order, (C,) int64; the first ones of a group with two
            parts stay first.

    Returns:
        A copy.
    """
    new = copy.deepcopy(network)
    for group in tied_channels(new):
        rows = order.get(group.name)
        if rows is None:
            continue
        parts = rows[: group.first].tolist(), rows[group.first :].tolist()
        if sorted(parts[0]) + sorted(parts[1]) != list(range(group.size)):
            raise ConfigError(f"{group.name}: expected an order of its {group.size} channels, part by part")
        _cut_group(new, group, rows)
    return new


def _check_rows(group: TiedChannels, rows: Tensor) -> None:
    count = len(rows)
    wanted = group.first_of(count)
    if count < 1 or bool((rows[1:] <= rows[:-1]).any()) or int(rows[0]) < 0 or int(rows[-1]) >= group.size:
        raise ConfigError(f"{group.name}: expected increasing channels of 0 to {group.size - 1}, got {rows.tolist()}")
    if group.first and (int((rows < group.first).sum()) != wanted or wanted in (0, count)):
        raise ConfigError(
            f"{group.name}: expected {wanted} of {count} channels among the first {group.first}, which have a norm of"
            " their own, and some of each"
        )


@torch.no_grad()
def _cut_group(network: nn.Module, group: TiedChannels, rows: Tensor) -> None:
    for name in group.writers:
        layer = network.get_submodule(name)
        _cut(layer, "weight", rows, 0)
        _cut(layer, "bias", rows, 0)
        _count(layer, _WRITTEN, len(rows))
    for name in group.readers:
        layer = network.get_submodule(name)
        _cut(layer, "weight", rows, 1)
        _count(layer, _READ, len(rows))
    for name in group.passers:
        _cut_passer(network.get_submodule(name), rows)


def _cut_passer(layer: nn.Module, rows: Tensor) -> None:
    if isinstance(layer, InstanceBatchNorm):
        first = rows[rows < layer.first]
        _cut_passer(layer.IN, first)
        _cut_passer(layer.BN, rows[len(first) :] - layer.first)
        layer.first = len(first)
        return
    is_conv = isinstance(layer, nn.Conv2d)
    size = layer.out_channels if isinstance(layer, nn.Conv2d) else None
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if is_conv or (tensor.dim() > 0 and tensor.shape[-1] == _channels_of(layer)):
            _cut(layer, name, rows, 0 if is_conv else tensor.dim() - 1)
    if size is not None or _channels_of(layer) > 0:
        _count(layer, _PASSED, len(rows))


def _channels_of(norm: nn.Module) -> int:
    return int(getattr(norm, "num_features", getattr(norm, "channels", 0)))


def _count(layer: nn.Module, names: Sequence[str], count: int) -> None:
    for name in names:
        if name in vars(layer):
            setattr(layer, name, count)


def _cut(layer: nn.Module, name: str, rows: Tensor, axis: int) -> None:
    old = getattr(layer, name, None)
    if old is None:
        return
    new = old.detach().index_select(axis, rows.to(old.device)).contiguous()
    setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
