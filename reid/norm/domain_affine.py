"""What happens to a normalized value: a scale and a shift, shared by the domains or one each.

All diagonal normalizations end as y = x * scale + shift with one scale and one shift for each image and
channel; :func:`scale_and_shift` is that end.  :class:`Transfer` additionally weighs channels by how well
they carry over from one domain to the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reid.norm.assignment import Assignment
from reid.norm.statistics import Stats
from reid.norm.statistics_source import StatisticsRows

Affine = tuple[Tensor | None, Tensor | None]


def scale_and_shift(
    rows: StatisticsRows, assignment: Assignment, affine: Affine, eps: float, gain: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and shift (R, C), R being B or 1: y = sum_k part_k [gamma_k (x - mu_k) / sqrt(var_k + eps) + beta_k].

    ``affine``: gamma and beta, (C,) for all domains or (G, C), one each; ``gain`` (C,) multiplies both.
    """
    sharp = torch.rsqrt(rows.var + eps)
    gamma, beta = (
        value if value is None or value.dim() == 1 else assignment.rows(value).to(sharp.dtype) for value in affine
    )
    scale = sharp if gamma is None else sharp * gamma
    shift = -rows.mean * scale if beta is None else beta - rows.mean * scale
    scale, shift = (rows.part * scale).sum(1), (rows.part * shift).sum(1)
    return (scale, shift) if gain is None else (scale * gain, shift * gain)


class Transfer(nn.Module):
    """TransNorm (Wang et al. 2019): channels whose statistics agree between two domains count for more.

    With d_c the distance between the domains' normalized means |mu_s / sigma_s - mu_t / sigma_t|, a channel
    is multiplied by 1 + C (1 + d_c)^-1 / sum_k (1 + d_k)^-1 (equations 5-7); no gradient passes through it.
    The factors sum to 2 C: a network of plain BN is doubled at every layer, as published.
    """

    domains = 2

    def forward(self, stats: Stats, eps: float) -> Tensor:
        """The statistics of the two domains -> factors (C,)."""
        position = (stats.mean / (stats.var + eps).sqrt()).detach()  # (2, C)
        closeness = 1 / (1 + (position[0] - position[1]).abs())
        return 1 + closeness * (len(closeness) / closeness.sum())
