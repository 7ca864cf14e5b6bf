"""Slimmable networks: one network that runs at several widths, each width a domain of the same condition.

A layer of C channels has ``slim_channels(C, w)`` at width w, and uses the leading slice of its weights; only the
statistics of the norms (and, as first published, their affine) are kept per width, because the channels of a
narrow network have other means and variances (Yu et al., "Slimmable neural networks", ICLR 2019).  With the affine
shared it is the norm of "Universally slimmable networks" (Yu and Huang, ICCV 2019), whose statistics are measured
after training: :func:`calibrate_widths`.

``Given(slim(network, [1.0, 0.5]))(images, 1)`` runs half the width: the domain is the index of the width, an int, for
a batch has one width.  A layer takes as many input channels as it is given, so networks of chains and residual sums
are slimmed as they are.  Where maps are concatenated (DenseNet) the network runs, but a narrow one reads other
channels than the leading slices of the wide one's; nothing here can see that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, ConfigError, DataError, unknown_name
from reid.norm.condition import Condition, Given, current_condition
from reid.norm.convert import replace_modules
from reid.norm.domain_batchnorm import AFFINES, DomainBatchNorm
from reid.norm.domain_rows import copy_flags_and_hooks
from reid.norm.statistics import Statistics

DIVISOR = 8  # channels come in multiples of it
MINIMUM = 2  # images to calibrate on: one has no variance after pooling
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def slim_channels(channels: int, width: float) -> int:
    """How many of ``channels`` a width (0..1] uses: the nearest multiple of 8, not under 0.9 of the exact number.

    All of them at width 1, never more than there are.
    """
    if width == 1:
        return channels
    exact = channels * width
    nearest = max(DIVISOR, int(exact + DIVISOR / 2) // DIVISOR * DIVISOR)
    return min(channels, nearest if nearest >= 0.9 * exact else nearest + DIVISOR)


def current_width(widths: Sequence[float]) -> int:
    """The index of the width that this forward pass runs at; ConditionError when it was not told one of ``widths``."""
    domain = (current_condition() or Condition()).domain
    if domain is None and len(widths) == 1:
        return 0
    if not isinstance(domain, int) or not 0 <= domain < len(widths):
        got = "labels of single images" if isinstance(domain, Tensor) else domain
        raise ConditionError(
            f"this network runs at the widths {', '.join(f'{w:g}' for w in widths)}, one for a whole batch:"
            f" call Given(network)(images, index) with an int from 0 to {len(widths) - 1}, got {got}"
        )
    return domain


class SwitchableConv2d(nn.Conv2d):
    """A convolution, dense or depthwise, of which a width uses the leading channels."""

    widths: tuple[float, ...] = (1.0,)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, I', H, W), the leading I' of I channels -> (B, O', H', W'), the leading O' of O."""
        outputs = slim_channels(self.out_channels, self.widths[current_width(self.widths)])
        inputs, groups = x.shape[1], 1
        if self.groups > 1:
            outputs = groups = inputs
        bias = None if self.bias is None else self.bias[:outputs]
        weight = self.weight[:outputs, :inputs]  # (O, 1, k, k) before, of a depthwise one
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def extracted(self, _row: int, inputs: int, outputs: int) -> nn.Module:
        """The convolution of these channels alone, as torch.nn has it."""
        new = nn.Conv2d(
            inputs,
            outputs,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            1 if self.groups == 1 else inputs,
            self.bias is not None,
            device="meta",
        )
        bias = None if self.bias is None else self.bias[:outputs]
        return _filled(new, self, weight=self.weight[:outputs, :inputs], bias=bias)


class SwitchableLinear(nn.Linear):
    """A linear layer that takes the leading features it is given and always gives all of its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I'), the leading I' of I features -> (..., O)."""
        return functional.linear(x, self.weight[:, : x.shape[-1]], self.bias)

    def extracted(self, _row: int, inputs: int, outputs: int) -> nn.Module:
        """The layer of these inputs alone, as torch.nn has it."""
        new = nn.Linear(inputs, outputs, self.bias is not None, device="meta")
        return _filled(new, self, weight=self.weight[:, :inputs], bias=self.bias)


class SwitchableBatchNorm(DomainBatchNorm):
    """BatchNorm with statistics for every width; ``affine`` "domain": a weight and bias each, "shared": the leading
    slices of one.

    The state is that of :class:`DomainBatchNorm`, rows of C of which a narrow width uses the leading part.
    """

    widths: tuple[float, ...] = (1.0,)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C') or (B, C', H, W), the leading C' of C channels -> the same shape."""
        update = (current_condition() or Condition()).update
        row, channels = current_width(self.widths), x.shape[1]
        fit = self.training and x.numel() > channels  # a single value has no variance
        momentum = 0.0
        if fit and update:
            tracked = self.num_batches_tracked.view(-1)[row]
            tracked.add_(1)
            momentum = 1.0 / float(tracked) if self.momentum is None else self.momentum
        mean, var = self._leading(self.running_mean, row, channels), self._leading(self.running_var, row, channels)
        weight, bias = self._affine(row, channels)
        return functional.batch_norm(x, mean, var, weight, bias, fit, momentum, self.eps)

    @torch.no_grad()
    def install_width(self, row: int, mean: Tensor, var: Tensor) -> None:
        """Set the kept statistics of a width: (C',), (C',)."""
        for running, value in ((self.running_mean, mean), (self.running_var, var)):
            self._leading(running, row, len(value)).copy_(value)

    def take_rows(self, names: Sequence[str], rows: Sequence[int | None]) -> DomainBatchNorm:  # noqa: ARG002
        """Refused, for the other layers would keep their widths."""
        raise ConfigError("the domains of this network are its widths; use slim, calibrate_widths or extract_width")

    def extracted(self, row: int, inputs: int, _outputs: int) -> nn.Module:
        """The norm of one width, as torch.nn has it."""
        weight, bias = self._affine(row, inputs)
        mean, var = self._leading(self.running_mean, row, inputs), self._leading(self.running_var, row, inputs)
        count = self.num_batches_tracked.view(-1)[row]
        new = self.plain(inputs, self.eps, self.momentum, weight is not None, device="meta")
        return _filled(
            new, self, weight=weight, bias=bias, running_mean=mean, running_var=var, num_batches_tracked=count
        )

    def _affine(self, row: int, channels: int) -> tuple[Tensor | None, Tensor | None]:
        if self.weight is None or self.bias is None:
            return None, None
        return self._leading(self.weight, row, channels), self._leading(self.bias, row, channels)

    @staticmethod
    def _leading(tensor: Tensor, row: int, channels: int) -> Tensor:
        return (tensor[row] if tensor.dim() == 2 else tensor)[:channels]


SWITCHABLE = (SwitchableConv2d, SwitchableLinear, SwitchableBatchNorm)


def slim(network: nn.Module, widths: Sequence[float], affine: str = "domain") -> nn.Module:
    """A copy of ``network`` that runs at each of ``widths``, all in (0, 1]; width 1 computes what ``network`` does.

    Convolutions and norms are slimmed to the width; a linear layer keeps its outputs, so a classifier or a neck with
    one gives the same number at every width.  Narrow widths need training or at least :func:`calibrate_widths`: they
    start with the leading part of the wide network's statistics, which are not theirs.  Raises ConfigError, naming the
    module, for a layer with weights for each channel that is not a Conv2d (dense or depthwise, zero padding), a Linear,
    or a BatchNorm with statistics.
    """
    chosen = tuple(float(width) for width in widths)
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 < width <= 1 for width in chosen):
        raise ConfigError(f"widths: expected distinct numbers above 0 and at most 1, got {list(widths)}")
    if affine not in AFFINES:
        raise ConfigError(unknown_name("affine", affine, AFFINES))

    def convert(name: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) is nn.Conv2d and _sliceable(layer):
            layer.__class__ = SwitchableConv2d  # the same state, hooks and flags; read another way
            layer.widths = chosen  # type: ignore[assignment]
        elif type(layer) is nn.Linear:
            layer.__class__ = SwitchableLinear
        elif type(layer) in NORMS and getattr(layer, "running_mean", None) is not None:
            return _switchable_norm(layer, chosen, affine)
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
    """The widths of a slimmable network in the order of their indices; () for another network."""
    found = (m.widths for m in network.modules() if isinstance(m, SwitchableConv2d | SwitchableBatchNorm))
    return next(found, ())


def calibrate_widths(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy whose norms have, at every width, the statistics of all images of ``batches``, (B, 3, H, W) each.

    Every batch runs at every width, normalized by its own moments; these are merged exactly over batches.
    Raises DataError for fewer than two images.
    """
    new = copy.deepcopy(network)
    measured = copy.deepcopy(network).eval()
    found: dict[tuple[str, int], Statistics] = {}
    for name, layer in _switchable_norms(measured).items():
        layer.train()
        layer.momentum = 0.0
        layer.register_forward_pre_hook(partial(_collect, found, name))
    given = Given(measured)
    with torch.inference_mode():
        for images in batches:
            for row in range(len(widths_of(network))):
                given(images, row)
    layers, images_seen = _switchable_norms(new), min((int(stats.mass) for stats in found.values()), default=0)
    if images_seen < MINIMUM:
        raise DataError(f"calibration of widths: expected at least {MINIMUM} images, got {images_seen}")
    for (name, row), stats in found.items():
        layers[name].install_width(row, stats.mean[0], stats.var[0])
    return new


def extract_width(network: nn.Module, width: float, images: Tensor) -> nn.Module:
    """A copy with plain torch.nn layers that computes what ``network`` does at one width, and holds no more.

    ``images`` (B, 3, H, W), any that the network takes: run once, to see how many channels each layer is given.
    """
    widths = widths_of(network)
    if width not in widths:
        raise ConfigError(f"width {width:g} is not one of {', '.join(f'{w:g}' for w in widths) or 'none'}")
    row, new = widths.index(width), copy.deepcopy(network)
    shapes: dict[str, tuple[int, int]] = {}
    probe = copy.deepcopy(network).eval()
    for name, layer in probe.named_modules():
        if isinstance(layer, SWITCHABLE):
            layer.register_forward_hook(partial(_note, shapes, name))
    with torch.inference_mode():
        Given(probe)(images, row)

    def plain(name: str, layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, SWITCHABLE):
            return None
        if name not in shapes:
            raise ConfigError(f"{name}: this layer did not run on the images given, so its channels are not known")
        return layer.extracted(row, *shapes[name])

    return replace_modules(new, plain)


def _sliceable(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return (conv.groups == 1 or depthwise) and conv.padding_mode == "zeros"


def _switchable_norm(plain: nn.Module, widths: tuple[float, ...], affine: str) -> SwitchableBatchNorm:
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


def _switchable_norms(network: nn.Module) -> dict[str, SwitchableBatchNorm]:
    return {name: m for name, m in network.named_modules() if isinstance(m, SwitchableBatchNorm)}


def _collect(
    found: dict[tuple[str, int], Statistics], name: str, layer: SwitchableBatchNorm, inputs: tuple[Tensor]
) -> None:
    """Merge the moments of a layer's input at the width it runs at into what was found so far."""
    labels = torch.zeros(len(inputs[0]), dtype=torch.int64, device=inputs[0].device)
    stats = layer.measure(inputs[0], labels, 1)
    key = (name, current_width(layer.widths))
    found[key] = found[key].merge(stats) if key in found else stats


def _note(
    shapes: dict[str, tuple[int, int]], name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> None:
    axis = -1 if isinstance(layer, SwitchableLinear) else 1
    shapes[name] = (inputs[0].shape[axis], output.shape[axis])


def _filled(new: nn.Module, old: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """The layer ``new``, made without memory, with copies of ``tensors`` and the flags and hooks of ``old``."""
    for key, value in tensors.items():
        if value is not None:
            kept = value.detach().clone()
            setattr(new, key, nn.Parameter(kept) if key in new._parameters else kept)
    copy_flags_and_hooks(new, old)
    return new
