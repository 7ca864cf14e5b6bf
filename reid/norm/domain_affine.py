"""The scale and the shift that turn a value into its normalized value.

All normalizations without covariances end as y = x * scale + shift, with one scale and one shift for each image and
channel; :func:`scale_and_shift` computes them.  :class:`Transfer` also weighs channels by how similar they are in two
domains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reid.errors import ConditionError
from reid.norm.assignment import Assignment
from reid.norm.statistics import Statistics
from reid.norm.statistics_source import ChosenStatistics

Affine = tuple[Tensor | None, Tensor | None]


def scale_and_shift(
    chosen: ChosenStatistics, assignment: Assignment, affine: Affine, eps: float, gain: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute scale and shift: y = sum_k weight_k [gamma_k (x - mu_k) / sqrt(var_k + eps) + beta_k].

    Args:
        chosen: The statistics that normalize each image.
        assignment: Which images belong to which domain.
        affine: gamma and beta, each (C,) for all domains or (G, C), one for each.
        eps: Added to the variances.
        gain: (C,), multiplies both.

    Returns:
        Scale and shift, (R, C) each, where R is B or 1.

    Raises:
        ConditionError: If images belong to domains by weights, each domain has its own affine, and statistics are mixed
            in that belong to no domain, as those of the image in IBN: which affine these get is not defined.
    """
    sharp = torch.rsqrt(chosen.var + eps)
    gamma, beta = (
        value if value is None or value.dim() == 1 else assignment.look_up(value).to(sharp.dtype) for value in affine
    )
    given = [value.shape[1] for value in (gamma, beta) if value is not None and value.dim() == 3]
    if any(count not in (1, sharp.shape[1]) for count in given):
        raise ConditionError(
            'domain: got weights (B, G); a layer that mixes in statistics of the image and has affine="domain" needs'
            ' one domain for each image; give int64 (B,), or convert the network with affine="shared"'
        )
    scale = sharp if gamma is None else sharp * gamma
    shift = -chosen.mean * scale if beta is None else beta - chosen.mean * scale
    scale, shift = (chosen.weight * scale).sum(1), (chosen.weight * shift).sum(1)
    return (scale, shift) if gain is None else (scale * gain, shift * gain)


class Transfer(nn.Module):
    """TransNorm (Wang et al. 2019): channels whose statistics agree between two domains count for more.

    With d_c the distance between the domains' normalized means |mu_s / sigma_s - mu_t / sigma_t|, a channel is
    multiplied by 1 + C (1 + d_c)^-1 / sum_k (1 + d_k)^-1 (equations 5-7); no gradient passes through it.  The factors
    sum to 2 C: the output of every layer is twice that of plain BN on average, as published.
    """

    domain_count = 2

    def forward(self, statistics: Statistics, eps: float) -> Tensor:
        """Compute the factors (C,) from the statistics of the two domains."""
        position = (statistics.mean / (statistics.var + eps).sqrt()).detach()  # (2, C)
        closeness = 1 / (1 + (position[0] - position[1]).abs())
        return 1 + closeness * (len(closeness) / closeness.sum())
