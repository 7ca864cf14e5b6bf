"""The layers of slimmable networks: each uses the leading channels of its weights.

:func:`reid.norm.specialised.switchable.slim` puts them into a network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, ConfigError
from reid.norm.batchnorm_layer import DomainBatchNorm
from reid.norm.condition import Condition, current_condition
from reid.norm.domain_rows import copy_flags_and_hooks

DIVISOR = 8  # channels come in multiples of it


def slim_channels(channels: int, width: float) -> int:
    """Return how many of some channels a width uses.

    Args:
        channels: The channels at width 1.
        width: In (0, 1].

    Returns:
        The nearest multiple of 8 that is not below 0.9 of the exact number; all channels at width 1, and never more.

    Example:
        >>> slim_channels(64, 0.5), slim_channels(64, 0.3), slim_channels(4, 0.5)
        (32, 24, 4)
    """
    if width == 1:
        return channels
    exact = channels * width
    nearest = max(DIVISOR, int(exact + DIVISOR / 2) // DIVISOR * DIVISOR)
    return min(channels, nearest if nearest >= 0.9 * exact else nearest + DIVISOR)


def current_width(widths: Sequence[float]) -> int:
    """Return the index of the width of this forward pass; raise ConditionError if it is not one of ``widths``."""
    domain = (current_condition() or Condition()).domain
    if domain is None and len(widths) == 1:
        return 0
    if not isinstance(domain, int) or not 0 <= domain < len(widths):
        got = "a domain for each image" if isinstance(domain, Tensor) else domain
        raise ConditionError(
            f"this network runs at the widths {', '.join(f'{w:g}' for w in widths)}, one for a whole batch:"
            f" call Given(network)(images, index) with an int from 0 to {len(widths) - 1}, got {got}"
        )
    return domain


class SwitchableConv2d(nn.Conv2d):
    """A convolution, dense or depthwise; a width uses its leading channels."""

    widths: tuple[float, ...] = (1.0,)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, I', H, W), the leading I' of I channels, to (B, O', H', W'), the leading O' of O."""
        outputs = slim_channels(self.out_channels, self.widths[current_width(self.widths)])
        inputs, groups = x.shape[1], 1
        if self.groups > 1:
            outputs = groups = inputs
        bias = None if self.bias is None else self.bias[:outputs]
        weight = self.weight[:outputs, :inputs]  # that of a depthwise convolution is (O, 1, k, k)
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def extracted(self, _row: int, inputs: int, outputs: int) -> nn.Module:
        """Return a plain convolution of these channels only."""
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
        return _fill(new, self, weight=self.weight[:outputs, :inputs], bias=bias)


class SwitchableLinear(nn.Linear):
    """A linear layer that takes the leading features and always gives all of its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., I'), the leading I' of I features, to (..., O)."""
        return functional.linear(x, self.weight[:, : x.shape[-1]], self.bias)

    def extracted(self, _row: int, inputs: int, outputs: int) -> nn.Module:
        """Return a plain linear layer of these inputs only."""
        new = nn.Linear(inputs, outputs, self.bias is not None, device="meta")
        return _fill(new, self, weight=self.weight[:, :inputs], bias=self.bias)


class SwitchableBatchNorm(DomainBatchNorm):
    """BatchNorm with statistics for every width.

    With ``affine`` "domain" each width has a weight and bias of its own; with "shared" it uses a leading slice.
    The state is that of :class:`DomainBatchNorm`; a narrow width uses the leading part of its row of C numbers.
    """

    widths: tuple[float, ...] = (1.0,)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C') or (B, C', H, W), the leading C' of C channels; the result has the same shape."""
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
        """Set the running statistics of a width: mean (C',) and variance (C',)."""
        for running, value in ((self.running_mean, mean), (self.running_var, var)):
            self._leading(running, row, len(value)).copy_(value)

    def take_rows(self, domains: Sequence[str], rows: Sequence[int | None]) -> DomainBatchNorm:  # noqa: ARG002
        """Raise ConfigError, because the other layers would keep their widths."""
        raise ConfigError("the domains of this network are its widths; use slim, calibrate_widths or extract_width")

    def extracted(self, row: int, inputs: int, _outputs: int) -> nn.Module:
        """Return the plain norm of one width."""
        weight, bias = self._affine(row, inputs)
        mean, var = self._leading(self.running_mean, row, inputs), self._leading(self.running_var, row, inputs)
        count = self.num_batches_tracked.view(-1)[row]
        new = self.plain(inputs, self.eps, self.momentum, weight is not None, device="meta")
        return _fill(new, self, weight=weight, bias=bias, running_mean=mean, running_var=var, num_batches_tracked=count)

    def _affine(self, row: int, channels: int) -> tuple[Tensor | None, Tensor | None]:
        if self.weight is None or self.bias is None:
            return None, None
        return self._leading(self.weight, row, channels), self._leading(self.bias, row, channels)

    @staticmethod
    def _leading(tensor: Tensor, row: int, channels: int) -> Tensor:
        return (tensor[row] if tensor.dim() == 2 else tensor)[:channels]


SWITCHABLE = (SwitchableConv2d, SwitchableLinear, SwitchableBatchNorm)


def _fill(new: nn.Module, old: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Give ``new``, a layer without memory, copies of ``tensors`` and the flags and hooks of ``old``."""
    for key, value in tensors.items():
        if value is not None:
            kept = value.detach().clone()
            setattr(new, key, nn.Parameter(kept) if key in new._parameters else kept)
    copy_flags_and_hooks(new, old)
    return new
