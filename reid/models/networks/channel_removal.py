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
