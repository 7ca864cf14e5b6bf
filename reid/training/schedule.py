"""How the learning rate and the weight of a loss change over a training.

Pure functions of the step or the epoch, so a resumed training needs no schedule state.
"""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, final: float) -> float:
    """Learning rate of update ``step`` (0-based) among ``steps``: a linear warm-up, then half a cosine.

    The warm-up takes ``warmup`` updates, from peak / warmup up to ``peak`` at its last one; the cosine
    falls from ``peak`` to ``final`` * ``peak`` at update steps - 1.  A warm-up longer than the training
    is cut off, never squeezed.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step must be in 0..{steps - 1}, got {step}")
    if step < warmup:
        return peak * (step + 1) / warmup
    falling = steps - 1 - warmup  # intervals between the first update after the warm-up and the last
    progress = (step - warmup) / falling if falling > 0 else 1.0
    return peak * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def ramp(epoch: float, *, start: float, length: float) -> float:
    """A weight in 0..1 at a (fractional) ``epoch``: 0 until ``start``, then linear to 1 in ``length`` epochs.

    The triplet loss on random features is smallest where all features are equal, so trained from scratch
    it collapses; cross-entropy alone spreads them first, then the triplet loss comes in.
    """
    if epoch < start:
        return 0.0
    return 1.0 if length <= 0 else min(1.0, (epoch - start) / length)
