"""Balls of perturbations: how large a change of an image is, which change is steepest, and how it becomes 8-bit values.

A size is in grey levels (0..255) and does not depend on the size of the image: the largest change of a value (linf),
the root of the mean square of all changes (l2), or the mean of their absolute values (l1).  So the ball of linf lies
inside that of l2, and that inside the ball of l1, of the same epsilon.  An l2 norm of 2 over 256 x 128 pixels with
values in 0..1, as papers state it, is 1.63 grey levels.

All functions work on perturbations (B, 3, H, W) float, image by image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Measure = Callable[[Tensor], Tensor]
Project = Callable[[Tensor, float], Tensor]
Steepest = Callable[[Tensor, Tensor, float], Tensor]
Quantize = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class BallNorm:
    """A norm of perturbations.

    Attributes:
        measure: The size (B,) float64 of perturbations.
        project: Moves perturbations into the ball of a size.
        steepest: The step of a size that raises a linear function most: called with its gradient, with the room
            (B, 3, H, W) that each value has in the direction of its gradient, and with the size.
        quantize: Rounds perturbations to whole grey levels that stay inside the ball of a size.
    """

    measure: Measure
    project: Project
    steepest: Steepest
    quantize: Quantize


def _flat(values: Tensor) -> Tensor:
    """View (B, 3, H, W) as rows (B, N) float64: sums of so many values need it."""
    return values.flatten(1).double()


def _by_image(numbers: Tensor, like: Tensor) -> Tensor:
    """View numbers (B,) so that they multiply (B, 3, H, W)."""
    return numbers.to(like.dtype).view(-1, 1, 1, 1)


def _largest(delta: Tensor) -> Tensor:
    return _flat(delta).abs().amax(1)


def _root_mean_square(delta: Tensor) -> Tensor:
    return _flat(delta).square().mean(1).sqrt()


def _mean_absolute(delta: Tensor) -> Tensor:
    return _flat(delta).abs().mean(1)


def _clamp(delta: Tensor, epsilon: float) -> Tensor:
    return delta.clamp(-epsilon, epsilon)


def _shorten(delta: Tensor, epsilon: float) -> Tensor:
    size = _root_mean_square(delta)
    return delta * _by_image(torch.where(size > epsilon, epsilon / size.clamp_min(1e-30), 1.0), delta)


def _shrink(delta: Tensor, epsilon: float) -> Tensor:
    """Project onto the l1 ball in the Euclidean sense (Duchi et al. 2008, figure 1): lower all values by one number."""
    values = _flat(delta).abs()
    budget = epsilon * values.shape[1]
    ordered, _ = values.sort(1, descending=True)
    numbers = torch.arange(1, values.shape[1] + 1, dtype=torch.float64, device=values.device)
    excess = (ordered.cumsum(1) - budget) / numbers
    last = (ordered > excess).sum(1, keepdim=True).clamp_min(1) - 1
    lowered = (values - excess.gather(1, last).clamp_min(0)).clamp_min(0)
    inside = values.sum(1, keepdim=True) <= budget
    return torch.where(inside, values, lowered).view_as(delta).to(delta.dtype) * delta.sign()


def _signs(gradient: Tensor, room: Tensor, size: float) -> Tensor:  # noqa: ARG001
    return gradient.sign() * size


def _along(gradient: Tensor, room: Tensor, size: float) -> Tensor:  # noqa: ARG001
    length = _root_mean_square(gradient)
    return gradient * _by_image(torch.where(length > 0, size / length.clamp_min(1e-30), 0.0), gradient)


def _greedy(gradient: Tensor, room: Tensor, size: float) -> Tensor:
    """Change the values of the largest gradient as far as they have room, until the step is used up."""
    slope, free = _flat(gradient).abs(), _flat(room).clamp_min(0)
    free = torch.where(slope > 0, free, 0.0)
    order = slope.argsort(dim=1, descending=True, stable=True)
    ordered = free.gather(1, order)
    left = size * slope.shape[1] - (ordered.cumsum(1) - ordered)
    used = torch.minimum(ordered, left.clamp_min(0))
    step = torch.zeros_like(free).scatter_(1, order, used)
    return step.view_as(gradient).to(gradient.dtype) * gradient.sign()


def _round_values(delta: Tensor, epsilon: float) -> Tensor:
    return delta.round().clamp(-float(int(epsilon)), float(int(epsilon)))


def _fill(
    delta: Tensor, budget: Tensor, costs: Callable[[Tensor], Tensor], total: Callable[[Tensor], Tensor]
) -> Tensor:
    """Round towards zero, then away from it where the fraction is largest, as long as the budget (B,) lasts."""
    values = _flat(delta).abs()
    whole = values.floor()
    fraction = values - whole
    order = fraction.argsort(dim=1, descending=True, stable=True)
    cost = torch.where(fraction > 0, costs(whole), torch.inf).gather(1, order)
    rises = (cost.cumsum(1) <= (budget - total(whole))[:, None]).double()
    rounded = whole + torch.zeros_like(whole).scatter_(1, order, rises)
    return rounded.view_as(delta).to(delta.dtype) * delta.sign()


def _round_squares(delta: Tensor, epsilon: float) -> Tensor:
    values = _flat(delta)
    budget = values.square().sum(1).clamp_max(epsilon**2 * values.shape[1]) + 1e-6
    return _fill(delta, budget, lambda whole: 2 * whole + 1, lambda whole: whole.square().sum(1))


def _round_sum(delta: Tensor, epsilon: float) -> Tensor:
    values = _flat(delta).abs()
    budget = values.sum(1).clamp_max(epsilon * values.shape[1]) + 1e-6
    return _fill(delta, budget, torch.ones_like, lambda whole: whole.sum(1))


NORMS: dict[str, BallNorm] = {
    "linf": BallNorm(_largest, _clamp, _signs, _round_values),
    "l2": BallNorm(_root_mean_square, _shorten, _along, _round_squares),
    "l1": BallNorm(_mean_absolute, _shrink, _greedy, _round_sum),
}


def change_of(clean: Tensor, changed: Tensor, norm: str) -> Tensor:
    """Measure how far images are changed, in grey levels.

    Args:
        clean: (B, 3, H, W) uint8.
        changed: (B, 3, H, W) uint8.
        norm: A key of :data:`NORMS`.

    Returns:
        (B,) float64.

    Example:
        >>> clean = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
        >>> changed = clean.clone()
        >>> changed[0, 0, 0, 0] = 6
        >>> [round(change_of(clean, changed, norm).item(), 2) for norm in ("linf", "l2", "l1")]
        [6.0, 1.73, 0.5]
    """
    return NORMS[norm].measure(changed.double() - clean.double())
