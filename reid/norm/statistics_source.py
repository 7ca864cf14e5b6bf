"""Which statistics normalize an image now: the one place where training and evaluation differ.

A source is handed what a layer knows (:class:`LayerView`) and answers with :class:`StatisticsRows`: for each image one
or several means and variances, and the part each has in the output.  Two mixtures are kept apart:
statistics are mixed before they normalize (Prior, Align, Optimized), outputs after (Blend, and weights
over domains).  A source knows nothing of scales and shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reid.errors import ConfigError
from reid.norm.assignment import Assignment
from reid.norm.statistics import Stats


@dataclass(frozen=True)
class LayerView:
    """What a layer knows of a batch of B images with G domains.

    ``images`` the moments of each image, as B groups; ``batch`` those of each domain's part of the batch,
    as the source settled them; ``running`` the kept ones; ``positions`` the values an image has in a channel.
    """

    images: Stats
    batch: Stats
    running: Stats
    assignment: Assignment
    positions: int
    training: bool

    def measured(self) -> Stats:
        """The batch's statistics; a domain with a single value a channel has no variance and takes the kept ones."""
        return self.batch.where(self.batch.mass * self.positions > 1, self.running)

    def current(self) -> Stats:
        """The batch's statistics in training, the kept ones in evaluation."""
        return self.measured() if self.training else self.running


@dataclass(frozen=True)
class StatisticsRows:
    """``mean``, ``var`` (R, K, C) and ``part`` (R, K, C), R being B or 1 and C perhaps 1: image i is
    normalized K times, and output i is the sum over k of part[i, k] times those."""

    mean: Tensor
    var: Tensor
    part: Tensor


def _rows(stats: Stats, assignment: Assignment) -> StatisticsRows:
    return StatisticsRows(
        assignment.rows(stats.mean), assignment.rows(stats.var), assignment.weights().to(stats.mean.dtype)
    )


class Source(nn.Module):
    """The statistics of plain BatchNorm, per domain: the batch's in training, the kept ones in evaluation."""

    plain = True  # torch's kernel can do it
    kept = True  # in evaluation a domain needs nothing but its kept statistics
    mixes = False  # a domain's statistics depend on the images of the others

    def settle(self, stats: Stats) -> Stats:
        """What is kept of the statistics that were measured for each domain."""
        return stats

    def rows(self, view: LayerView) -> StatisticsRows:
        """Means and variances for every image."""
        return _rows(view.current(), view.assignment)


class BatchStatistics(Source):
    """Prediction-time BN (Nado et al. 2020): the batch's own statistics in evaluation too.

    An image's output then depends on its batch mates: measure with it, but never fill a gallery with it.
    """

    plain = False
    kept = False

    def rows(self, view: LayerView) -> StatisticsRows:
        """Means and variances for every image."""
        return _rows(view.measured(), view.assignment)


class Prior(Source):
    """In evaluation the kept statistics count as ``images`` images beside the n of the batch (Schneider et al. 2020).

    mu = N / (N + n) mu_kept + n / (N + n) mu_batch for every domain; the variance likewise ("naive", as
    published) or with the variance between the two means ("mixture").  N = 0 is :class:`BatchStatistics`.
    """

    plain = False
    kept = False

    def __init__(self, images: float = 16.0, variance: Literal["naive", "mixture"] = "naive") -> None:
        super().__init__()
        if not images >= 0 or variance not in ("naive", "mixture"):
            raise ConfigError(
                f'prior: expected N >= 0 images and variance "naive" or "mixture", got {images} and {variance!r}'
            )
        self.images, self.variance = images, variance

    def rows(self, view: LayerView) -> StatisticsRows:
        """Means and variances for every image."""
        if view.training:
            return super().rows(view)
        measured = view.measured()
        share = (view.batch.mass / (view.batch.mass + self.images).clamp_min(1e-12)).unsqueeze(1)
        mixed = view.running.lerp if self.variance == "naive" else view.running.blend
        return _rows(mixed(measured, share), view.assignment)


class Align(Source):
    """DIAL / AutoDIAL (Carlucci et al. 2017): each domain's statistics are those of a crowd that holds the
    other domains with weight 1 - alpha; one learned alpha in 0.5..1 a layer.

    With two domains, mu_s = a E_s[x] + (1 - a) E_t[x], and the variance is taken around that mixed mean
    (equations 4-7).  alpha 1 is one BN a domain, 0.5 one for both with equal weight.  With more domains
    the others share 1 - alpha equally.
    """

    plain = False
    mixes = True

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def settle(self, stats: Stats) -> Stats:
        """The mixed statistics of every domain; a domain without images mixes nothing in."""
        if self.training:
            with torch.no_grad():
                self.alpha.clamp_(0.5, 1.0)
        own = torch.eye(len(stats.mass), dtype=stats.mean.dtype, device=stats.mean.device)
        others = (1 - own) * (stats.mass > 0).to(own.dtype)
        count = others.sum(1, keepdim=True)
        alpha = torch.where(count > 0, self.alpha.to(own.dtype), 1.0)  # (G, 1): alone, all weight is its own
        mixed = stats.mix(alpha * own + (1 - alpha) * others / count.clamp_min(1))
        return Stats(mixed.mean, mixed.var, stats.mass)


class Instance(Source):
    """Each image's own statistics: instance normalization, in training and in evaluation."""

    plain = False
    kept = False

    def rows(self, view: LayerView) -> StatisticsRows:
        """Means and variances for every image."""
        return _instance(view)


class Optimized(Source):
    """DSON (Seo et al. 2020): each domain learns how to mix its BN statistics with those of the image.

    mu = w mu_domain + (1 - w) mu_image and var = w' var_domain + (1 - w') var_image, with w and w' of every
    domain between 0 and 1, first 0.5 (equations 3-5).
    """

    plain = False
    kept = False
    row_parameters = ("logits",)

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(groups, 2))  # of the mean and of the variance

    def rows(self, view: LayerView) -> StatisticsRows:
        """Means and variances for every image."""
        kept, image = super().rows(view), _instance(view)
        share = view.assignment.rows(torch.sigmoid(self.logits).to(kept.mean.dtype))  # (R, K, 2)
        mean = share[..., :1] * kept.mean + (1 - share[..., :1]) * image.mean
        var = share[..., 1:] * kept.var + (1 - share[..., 1:]) * image.var
        return StatisticsRows(mean, var, kept.part)


class Blend(Source):
    """Outputs of BN and instance normalization, blended in every channel by ``gate`` (C,) in 0..1, 1 being BN.

    BIN / MetaBIN (Nam & Kim 2018; Choi et al. 2021) learn the gate, from 1; IBN-a (Pan et al. 2018) fixes
    it: the first half of the channels 0, the rest 1.
    """

    plain = False
    kept = False

    def __init__(self, gate: Tensor, learned: bool) -> None:
        super().__init__()
        if learned:
            self.gate: Tensor = nn.Parameter(gate)
        else:
            self.register_buffer("gate", gate)

    def rows(self, view: LayerView) -> StatisticsRows:
        """Means and variances for every image; maps of one position have no instance statistics: all BN."""
        kept = super().rows(view)
        if view.positions < 2:
            return kept
        if self.training and isinstance(self.gate, nn.Parameter):
            with torch.no_grad():
                self.gate.clamp_(0.0, 1.0)
        image = _instance(view)
        gate = self.gate.to(kept.mean.dtype)
        count = image.mean.shape[0]  # not len(), which would fix the size of an exported batch
        return StatisticsRows(*(torch.cat([a.expand(count, *a.shape[1:]), b], 1) for a, b in (
            (kept.mean, image.mean),
            (kept.var, image.var),
            ((kept.part * gate).expand(count, -1, -1), (1 - gate).expand(count, 1, -1)),
        )))  # fmt: skip


def _instance(view: LayerView) -> StatisticsRows:
    mean, var = view.images.mean.unsqueeze(1), view.images.var.unsqueeze(1)
    return StatisticsRows(mean, var, torch.ones_like(mean[:1, :, :1]))
