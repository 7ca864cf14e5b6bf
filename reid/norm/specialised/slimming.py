"""Network slimming (Liu et al., ICCV 2017): remove the channels that a BatchNorm scales to almost nothing.

Train with :func:`scale_penalty` added to the loss, choose a threshold, remove channels, and train a little more.
Channels are removed from chains of convolution, BatchNorm, ReLU and convolution.  Where maps are added or concatenated,
channels are tied to those of other layers, which :func:`remove_channels` cannot know.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from reid.errors import ConfigError
from reid.norm.specialised.tent import batch_norms


def scale_penalty(network: nn.Module) -> Tensor:
    """Compute the sum of |gamma| over all BatchNorm layers, plain or converted.

    Its gradient is the sign of every scale, which the published code adds by hand.

    Returns:
        A scalar; its usual weight in a loss is 1e-4.

    Raises:
        ConfigError: If the network has no BatchNorm with a scale.

    Example:
        >>> scale_penalty(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))).item()
        8.0
    """
    return torch.stack([scale.abs().sum() for scale in _scales(network)]).sum()


def scale_threshold(network: nn.Module, part: float) -> float:
    """Find the |gamma| that a fraction of all scales of the network are below.

    Args:
        network: A network with BatchNorm, plain or converted.
        part: The fraction, 0 to below 1.

    Raises:
        ConfigError: If the fraction cannot be used, or the network has no BatchNorm with a scale.
    """
    if not 0 <= part < 1:
        raise ConfigError(f"slimming: expected a part of the channels from 0 to below 1, got {part}")
    ordered = torch.cat([scale.detach().abs().flatten() for scale in _scales(network)]).sort().values
    return float(ordered[int(len(ordered) * part)])


def remove_channels(chain: nn.Sequential, threshold: float = 0.0) -> nn.Sequential:
    """Remove the channels between two convolutions whose scale is small; exact where the scale is 0.

    This happens wherever a dense Conv2d, BatchNorm2d, ReLU and a dense Conv2d follow each other.  A channel with scale
    0 is the constant ReLU(beta), which is added to the bias of the second convolution.  With zero padding the constant
    ends at the border, so a channel with beta > 0 stays there.  At least one channel always stays.

    Args:
        chain: The layers; they do not change.
        threshold: Channels with |gamma| up to this are removed.

    Returns:
        A copy of the chain with fewer channels.
    """
    new = copy.deepcopy(chain)
    layers = list(new)
    for first, norm, act, second in zip(layers, layers[1:], layers[2:], layers[3:], strict=False):
        if (
            _is_dense(first)
            and type(norm) is nn.BatchNorm2d
            and norm.affine
            and type(act) is nn.ReLU
            and _is_dense(second)
        ):
            _remove_between(first, norm, second, threshold)  # type: ignore[arg-type]
    return new


@torch.no_grad()
def _remove_between(first: nn.Conv2d, norm: nn.BatchNorm2d, second: nn.Conv2d, threshold: float) -> None:
    constant = norm.bias.relu()
    kept = norm.weight.abs() > threshold
    if second.padding_mode == "zeros" and second.padding not in ("valid", (0, 0)):
        kept |= constant > 0
    if not kept.any():
        kept[norm.weight.abs().argmax()] = True
    shift = second.weight[:, ~kept].sum((2, 3)) @ constant[~kept]
    if shift.any():
        second.bias = nn.Parameter(shift if second.bias is None else second.bias + shift)
    for layer, names in ((first, ("weight", "bias")), (norm, ("weight", "bias", "running_mean", "running_var"))):
        for name in names:
            _cut(layer, name, kept, 0)
    _cut(second, "weight", kept, 1)
    first.out_channels = norm.num_features = second.in_channels = int(kept.sum())


def _cut(layer: nn.Module, name: str, kept: Tensor, axis: int) -> None:
    old = getattr(layer, name)
    if old is None:
        return
    new = old.detach().index_select(axis, kept.nonzero()[:, 0])
    setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _is_dense(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and layer.groups == 1


def _scales(network: nn.Module) -> list[nn.Parameter]:
    scales = [layer.weight for layer in batch_norms(network).values() if isinstance(layer.weight, nn.Parameter)]
    if not scales:
        raise ConfigError(f"slimming: {type(network).__name__} has no BatchNorm with a scale")
    return scales
