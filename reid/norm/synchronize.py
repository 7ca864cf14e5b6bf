"""Statistics of a batch that is spread over several processes, with one reduction for each layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from reid.norm.statistics import Statistics


def synchronized(batch: Statistics) -> Statistics:
    """Merge the statistics of the same domains over the batches of all processes, with gradients.

    Every process must call this, whatever domains its own batch has.  Sums are taken in float64, so that large means
    do not cancel.

    Args:
        batch: The statistics of the domains in the batch of this process.

    Returns:
        The statistics over all processes.  Without a process group, or with one process, this is ``batch`` itself.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return batch
    mass = batch.mass.double().unsqueeze(1)  # (G, 1)
    mean = batch.mean.double()
    # Around 0, not the running means: a compiler computes those again for the backward pass, when they have moved.
    total = _Sum.apply(torch.cat([mass, mass * mean, mass * (batch.var + mean.square())], 1))  # (G, 1 + 2C)
    mass = total[:, :1]
    mean, square = (total[:, 1:] / mass.clamp_min(torch.finfo(mass.dtype).tiny)).chunk(2, 1)
    var = (square - mean.square()).clamp_min(0)
    return Statistics(*(value.to(batch.mean.dtype) for value in (mean, var, mass[:, 0])))


class _Sum(torch.autograd.Function):
    """The sum over all processes; the gradient of every summand is the sum of the gradients of all processes.

    The functional ``all_reduce`` of torch passes no gradient back in the older versions that we support.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep nothing, because the backward pass needs only the gradients."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return _Sum.forward(gradients[0])
