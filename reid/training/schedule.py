"""How the learning rate and the weight of a loss change over a training.

They are functions of the step or the epoch, so a training that resumes needs no state of a schedule.
"""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, final: float) -> float:
    """Compute the learning rate of one update: a linear warm-up, then half a cosine.

    The warm-up rises from peak / warmup to the peak. The cosine falls from the peak to final * peak at the last
    update. A warm-up that is longer than the training is cut off; it does not rise faster.

    Args:
        step: The update, counted from 0.
        steps: The number of updates of the training.
        warmup: The number of updates of the warm-up.
        peak: The largest learning rate.
        final: The learning rate of the last update, as a fraction of the peak.

    Raises:
        ValueError: The training has no such update.

    Example:
        >>> [round(learning_rate(s, steps=5, warmup=2, peak=1.0, final=0.0), 2) for s in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if not 0 <= step < steps:
        raise ValueError(f"step must be in 0..{steps - 1}, got {step}")
    if step < warmup:
        return peak * (step + 1) / warmup
    falling = steps - 1 - warmup  # intervals between the first update after the warm-up and the last
    progress = (step - warmup) / falling if falling > 0 else 1.0
    return peak * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def ramp(epoch: float, *, start: float, length: float) -> float:
    """Compute a weight that is 0 until ``start`` and then rises linearly to 1 in ``length`` epochs.

    The triplet loss on random features is smallest where all features are equal, so a network that trains with it from
    scratch collapses. Cross-entropy alone spreads the features first, and then the triplet loss joins it.

    Args:
        epoch: The (fractional) epoch, counted from 0.0.
        start: The epoch at which the weight begins to rise.
        length: The number of epochs from 0 to 1; 0 makes a step.

    Example:
        >>> [ramp(epoch, start=4, length=2) for epoch in (3.5, 5.0, 10.0)]
        [0.0, 0.5, 1.0]
    """
    if epoch < start:
        return 0.0
    return 1.0 if length <= 0 else min(1.0, (epoch - start) / length)
