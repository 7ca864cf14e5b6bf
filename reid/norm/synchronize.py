"""Statistics of a batch that is spread over several processes: one reduction a layer.

Knows ``torch.distributed`` and :class:`~reid.norm.stats.Stats`, nothing of layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from reid.norm.stats import Stats


def synchronized(batch: Stats, pivot: Stats) -> Stats:
    """The statistics of the same domains over the batches of all processes, with gradients.

    Every process takes part whatever domains its own batch has.  Sums are taken around ``pivot`` (the
    kept statistics, equal everywhere), so that large means do not cancel.  Without a process group, or
    with one process, ``batch`` comes back as it is.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return batch
    mass = batch.mass.unsqueeze(1)  # (G, 1)
    offset = batch.mean - pivot.mean
    packed = torch.cat([mass, mass * offset, mass * (batch.var + offset.square())], 1)  # (G, 1 + 2C)
    return _unpacked(_Sum.apply(packed), pivot)


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient of every summand is the sum of the gradients of all processes.

    torch's functional ``all_reduce`` would do, but passes no gradient back in the older versions that we support.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return _Sum.forward(gradients[0])


def _unpacked(total: Tensor, pivot: Stats) -> Stats:
    channels = pivot.mean.shape[1]
    mass = total[:, :1]
    means = total[:, 1:] / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    offset, square = means[:, :channels], means[:, channels:]
    mean = torch.where(mass > 0, pivot.mean + offset, 0.0)
    return Stats(mean, (square - offset.square()).clamp_min(0), mass[:, 0])
