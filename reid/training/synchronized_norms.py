"""Batch normalization whose statistics are those of the rows of all processes, as in one process with the whole batch.

The layers of :mod:`reid.norm` can do that themselves. PyTorch's own layer for plain BatchNorm runs on GPUs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reid.errors import ConfigError
from reid.norm.statistics import Statistics, as_maps
from reid.norm.synchronize import synchronized


class SynchronizedBatchNorm(_BatchNorm):
    """BatchNorm that pools the statistics of a training batch over all processes.

    A layer becomes one by having its class replaced, so that its parameters, buffers and hooks stay.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, ...) with the statistics of all processes in training, and with the running ones else."""
        if not self.training:
            return super().forward(x)
        maps = as_maps(x).float()
        var, mean = torch.var_mean(maps, (0, 2, 3), correction=0)
        mass = maps.new_full((1,), float(len(maps)))
        found = synchronized(Statistics(mean[None], var[None], mass))
        self._remember(found, maps.shape[2] * maps.shape[3])
        scale = torch.rsqrt(found.var[0] + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        shift = -found.mean[0] * scale
        shift = shift if self.bias is None else shift + self.bias
        shape = (1, -1, *[1] * (x.dim() - 2))
        return (x.float() * scale.view(shape) + shift.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, found: Statistics, positions: int) -> None:
        """Move the running statistics as BatchNorm does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        count = found.mass[0] * positions
        self.running_mean.lerp_(found.mean[0].to(self.running_mean.dtype), share)
        unbiased = found.var[0] * (count / (count - 1).clamp_min(1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


@contextmanager
def synchronized_norms(network: nn.Module) -> Iterator[None]:
    """Pool the statistics of all norms of a network over the processes during the ``with`` block.

    Raises:
        ConfigError: A norm is of a class that cannot do that.
    """
    plain, own = dict[nn.Module, type[nn.Module]](), dict[nn.Module, bool]()
    for name, module in network.named_modules():
        if hasattr(module, "sync"):
            own[module] = bool(module.sync)
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            plain[module] = type(module)
        elif isinstance(module, _BatchNorm):
            raise ConfigError(
                f"{name} is a {type(module).__name__}, whose statistics cannot be pooled over processes; train in one"
                ' process, or set norm.axis = "camera"'
            )
    try:
        for module in plain:
            module.__class__ = SynchronizedBatchNorm
        for module in own:
            module.sync = True  # type: ignore[assignment]
        yield
    finally:
        for module, was in plain.items():
            module.__class__ = was
        for module, sync in own.items():
            module.sync = sync  # type: ignore[assignment]
