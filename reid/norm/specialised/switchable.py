"""Slimmable networks: one network that runs at several widths; each width is a normalization domain.

A layer of C channels uses the leading slice of its weights, ``slim_channels(C, w)`` channels at width w.  Only the
statistics of the norms (and, as first published, their affine) are kept for each width, because the channels of a
narrow network have other means and variances (Yu et al., "Slimmable neural networks", ICLR 2019).  With a shared affine
these are "Universally slimmable networks" (Yu and Huang, ICCV 2019), whose statistics are measured after training by
:func:`calibrate_widths`.

``Given(slim(network, [1.0, 0.5]))(images, 1)`` runs half the width: the domain is the index of the width, one int for a
batch.  A layer takes as many input channels as it gets, so networks of chains and residual sums work as they are.
Where maps are concatenated (DenseNet) the network runs, but a narrow one reads other channels than the leading slices
of the wide one's, which :func:`slim` cannot know.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, DataError, unknown_name
from reid.norm.batchnorm_layer import AFFINES
from reid.norm.condition import Given
from reid.norm.convert import replace_modules
from reid.norm.domain_rows import copy_flags_and_hooks
from reid.norm.specialised.switchable_layers import (
    SWITCHABLE,
    SwitchableBatchNorm,
    SwitchableConv2d,
    SwitchableLinear,
    current_width,
)
from reid.norm.statistics import Statistics

MINIMUM = 2  # images to calibrate on, because one has no variance after pooling
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def slim(network: nn.Module, widths: Sequence[float], affine: str = "domain") -> nn.Module:
    """Make a network slimmable; at width 1 it computes what it did before.

    Convolutions and norms are slimmed to the width.  A linear layer keeps its outputs, so a classifier or a neck with
    one gives as many numbers at every width.  Narrow widths need training, or at least :func:`calibrate_widths`: they
    start with the leading part of the wide network's statistics, which are wrong for them.

    Args:
        network: The network; it does not change.
        widths: The widths, all in (0, 1].
        affine: "domain" for an affine of each width, "shared" for one.

    Returns:
        A copy of the network; call it as ``Given(copy)(images, index_of_the_width)``.

    Raises:
        ConfigError: If a width or the affine cannot be used, or a layer with weights for each channel is not a Conv2d
            (dense or depthwise, zero padding), a Linear, or a BatchNorm with statistics.

    Example:
        >>> network = slim(nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)), [1.0, 0.5])
        >>> Given(network)(torch.randn(2, 3, 8, 8), 1).shape
        torch.Size([2, 32, 6, 6])
    """
    chosen = tuple(float(width) for width in widths)
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 < width <= 1 for width in chosen):
        raise ConfigError(f"widths: expected distinct numbers above 0 and at most 1, got {list(widths)}")
    if affine not in AFFINES:
        raise ConfigError(unknown_name("affine", affine, AFFINES))

    def convert(name: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) is nn.Conv2d and _can_be_sliced(layer):
            layer.__class__ = SwitchableConv2d  # the same state, hooks and flags, with another forward
            layer.widths = chosen  # type: ignore[assignment]
        elif type(layer) is nn.Linear:
            layer.__class__ = SwitchableLinear
        elif type(layer) in NORMS and getattr(layer, "running_mean", None) is not None:
            return _make_switchable(layer, chosen, affine)
        elif any(own.numel() > 1 for own in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))):
            raise ConfigError(
                f"{name}: cannot slim a {type(layer).__name__}; expected a Conv2d (dense or depthwise, zero padding),"
                " a Linear, or a BatchNorm with statistics"
            )
        return None

    new = replace_modules(copy.deepcopy(network), convert)
    if not widths_of(new):
        raise ConfigError(f"{type(network).__name__} has no convolution or BatchNorm, so it has no width")
    return new


def widths_of(network: nn.Module) -> tuple[float, ...]:
    """Return the widths of a slimmable network in the order of their indices; () for another network."""
    found = (m.widths for m in network.modules() if isinstance(m, SwitchableConv2d | SwitchableBatchNorm))
    return next(found, ())


def calibrate_widths(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Measure the statistics of every width on some images.

    Every batch runs at every width, normalized by its own moments; these are merged exactly over batches.

    Args:
        network: A slimmable network; it does not change.
        batches: Images (B, 3, H, W).

    Returns:
        A copy of the network with these statistics.

    Raises:
        DataError: If there are fewer than two images.
    """
    new = copy.deepcopy(network)
    measured = copy.deepcopy(network).eval()
    found: dict[tuple[str, int], Statistics] = {}
    for name, layer in _norms_by_name(measured).items():
        layer.train()
        layer.momentum = 0.0
        layer.register_forward_pre_hook(partial(_collect_moments, found, name))
    given = Given(measured)
    with torch.inference_mode():
        for images in batches:
            for row in range(len(widths_of(network))):
                given(images, row)
    layers, count = _norms_by_name(new), min((int(stats.mass) for stats in found.values()), default=0)
    if count < MINIMUM:
        raise DataError(f"calibration of widths: expected at least {MINIMUM} images, got {count}")
    for (name, row), stats in found.items():
        layers[name].install_width(row, stats.mean[0], stats.var[0])
    return new


def extract_width(network: nn.Module, width: float, images: Tensor) -> nn.Module:
    """Extract the network of one width, with plain layers of torch.nn and without the other channels.

    Args:
        network: A slimmable network; it does not change.
        width: One of its widths.
        images: Any images (B, 3, H, W) that the network takes.  It runs once, to count the channels that each layer
            gets.

    Returns:
        A network that computes what ``network`` computes at this width.

    Raises:
        ConfigError: If the network does not have this width, or a layer does not run on the images.
    """
    widths = widths_of(network)
    if width not in widths:
        raise ConfigError(f"width {width:g} is not one of {', '.join(f'{w:g}' for w in widths) or 'none'}")
    row, new = widths.index(width), copy.deepcopy(network)
    shapes: dict[str, tuple[int, int]] = {}
    probe = copy.deepcopy(network).eval()
    for name, layer in probe.named_modules():
        if isinstance(layer, SWITCHABLE):
            layer.register_forward_hook(partial(_note_channels, shapes, name))
    with torch.inference_mode():
        Given(probe)(images, row)

    def plain(name: str, layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, SWITCHABLE):
            return None
        if name not in shapes:
            raise ConfigError(f"{name}: this layer did not run on the images given, so its channels are not known")
        return layer.extracted(row, *shapes[name])

    return replace_modules(new, plain)


def _can_be_sliced(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return (conv.groups == 1 or depthwise) and conv.padding_mode == "zeros"


def _make_switchable(plain: nn.Module, widths: tuple[float, ...], affine: str) -> SwitchableBatchNorm:
    state = plain.state_dict()
    layer = SwitchableBatchNorm(
        len(state["running_mean"]),
        [str(width) for width in widths],
        affine=affine if "weight" in state else None,
        plain=type(plain),
        eps=plain.eps,  # type: ignore[arg-type]
        momentum=plain.momentum,  # type: ignore[arg-type]
    )
    layer.widths = widths
    layer.to(state["running_mean"].device, state["running_mean"].dtype).load_state_dict(state)
    copy_flags_and_hooks(layer, plain)
    return layer


def _norms_by_name(network: nn.Module) -> dict[str, SwitchableBatchNorm]:
    return {name: m for name, m in network.named_modules() if isinstance(m, SwitchableBatchNorm)}


def _collect_moments(
    found: dict[tuple[str, int], Statistics], name: str, layer: SwitchableBatchNorm, inputs: tuple[Tensor]
) -> None:
    """Merge the moments of a layer's input, at the width of this pass, into those found so far."""
    domain = torch.zeros(len(inputs[0]), dtype=torch.int64, device=inputs[0].device)
    stats = layer.measure(inputs[0], domain, 1)
    key = (name, current_width(layer.widths))
    found[key] = found[key].merge(stats) if key in found else stats


def _note_channels(
    shapes: dict[str, tuple[int, int]], name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> None:
    axis = -1 if isinstance(layer, SwitchableLinear) else 1
    shapes[name] = (inputs[0].shape[axis], output.shape[axis])
