"""Sources: they choose the statistics that normalize an image.  Only here do training and evaluation differ.

A source is given what a layer knows (:class:`LayerView`) and returns :class:`ChosenStatistics`: for each image one or
several means and variances, and the weight of each in the output.  There are two kinds of mixture.  Statistics are
mixed before they normalize (Prior, Align, Optimized), outputs afterwards (Blend, and weights over domains).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reid.errors import ConfigError
from reid.norm.assignment import Assignment
from reid.norm.statistics import Statistics


@dataclass(frozen=True)
class LayerView:
    """What a layer knows of a batch of B images with G domains.

    Attributes:
        images: The statistics of each image, as B groups.
        batch: Those of each domain in the batch, after :meth:`Source.combine_domains`.
        running: The running statistics of each domain.
        assignment: Which images belong to which domain.
        positions: How many values an image has in a channel, H W.
        training: Whether the layer is in training.
    """

    images: Statistics
    batch: Statistics
    running: Statistics
    assignment: Assignment
    positions: int
    training: bool

    def batch_or_running(self) -> Statistics:
        """Return the batch's statistics, or the running ones of a domain with one value a channel (no variance)."""
        return self.batch.keep_where(self.batch.mass * self.positions > 1, self.running)

    def current(self) -> Statistics:
        """Return the batch's statistics in training, the running ones in evaluation."""
        return self.batch_or_running() if self.training else self.running


@dataclass(frozen=True)
class ChosenStatistics:
    """The statistics that normalize: image i is normalized K times, and its output is the weighted sum of these.

    Attributes:
        mean: (R, K, C), where R is B or 1.
        var: (R, K, C).
        weight: (R, K, C), or with 1 in place of C.
    """

    mean: Tensor
    var: Tensor
    weight: Tensor


def _of_domains(statistics: Statistics, assignment: Assignment) -> ChosenStatistics:
    return ChosenStatistics(
        assignment.look_up(statistics.mean),
        assignment.look_up(statistics.var),
        assignment.output_weights().to(statistics.mean.dtype),
    )


def _of_images(view: LayerView) -> ChosenStatistics:
    mean, var = view.images.mean.unsqueeze(1), view.images.var.unsqueeze(1)
    return ChosenStatistics(mean, var, torch.ones_like(mean[:1, :, :1]))


class Source(nn.Module):
    """The statistics of plain BatchNorm per domain: the batch's in training, the running ones in evaluation.

    Attributes:
        is_plain: Whether torch's own kernel computes the same.
        uses_running_only: Whether evaluation needs nothing but the running statistics of the image's domain.
        mixes_domains: Whether the statistics of a domain depend on the images of other domains.
    """

    is_plain = True
    uses_running_only = True
    mixes_domains = False

    def combine_domains(self, statistics: Statistics) -> Statistics:
        """Combine the statistics (G, C) that were measured for each domain into its running statistics."""
        return statistics

    def choose(self, view: LayerView) -> ChosenStatistics:
        """Choose the means and variances that normalize every image."""
        return _of_domains(view.current(), view.assignment)


class BatchStatistics(Source):
    """Prediction-time BN (Nado et al. 2020): the batch's own statistics in evaluation too.

    The output for an image then depends on the other images of its batch.  Use this to measure what statistics are
    worth, never to fill a gallery.
    """

    is_plain = False
    uses_running_only = False

    def choose(self, view: LayerView) -> ChosenStatistics:
        """Choose the statistics of the batch."""
        return _of_domains(view.batch_or_running(), view.assignment)


class Prior(Source):
    """In evaluation the running statistics count as N images beside the n of the batch (Schneider et al. 2020).

    mu = N / (N + n) mu_running + n / (N + n) mu_batch for every domain, and likewise for the variance.

    Args:
        images: N, at least 0; 0 is :class:`BatchStatistics`.
        variance: "naive" leaves out the variance between the two means, as published; "mixture" includes it.
    """

    is_plain = False
    uses_running_only = False

    def __init__(self, images: float = 16.0, variance: Literal["naive", "mixture"] = "naive") -> None:
        super().__init__()
        if not images >= 0 or variance not in ("naive", "mixture"):
            raise ConfigError(
                f'prior: expected N >= 0 images and variance "naive" or "mixture", got {images} and {variance!r}'
            )
        self.images, self.variance = images, variance

    def choose(self, view: LayerView) -> ChosenStatistics:
        """Choose the mixture in evaluation, the statistics of the batch in training."""
        if view.training:
            return super().choose(view)
        share = (view.batch.mass / (view.batch.mass + self.images).clamp_min(1e-12)).unsqueeze(1)
        combine = view.running.interpolate if self.variance == "naive" else view.running.mix_with
        return _of_domains(combine(view.batch_or_running(), share), view.assignment)


class Align(Source):
    """DIAL / AutoDIAL (Carlucci et al. 2017): the statistics of each domain include the others with weight 1 - alpha.

    With two domains, mu_s = a E_s[x] + (1 - a) E_t[x], and the variance is taken around that mixed mean (equations
    4-7).  Every layer learns one alpha in 0.5..1: 1 is one BN for each domain, 0.5 one BN for both with equal weight.
    With more domains the others share 1 - alpha equally.

    Args:
        alpha: The first value, 0.5..1.
    """

    is_plain = False
    mixes_domains = True

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def combine_domains(self, statistics: Statistics) -> Statistics:
        """Mix the statistics of the domains; one without images adds nothing to the others."""
        if self.training:
            with torch.no_grad():
                self.alpha.clamp_(0.5, 1.0)
        own = torch.eye(len(statistics.mass), dtype=statistics.mean.dtype, device=statistics.mean.device)
        others = (1 - own) * (statistics.mass > 0).to(own.dtype)
        count = others.sum(1, keepdim=True)
        alpha = torch.where(count > 0, self.alpha.to(own.dtype), 1.0)  # (G, 1): without others its own weigh all
        mixed = statistics.mix(alpha * own + (1 - alpha) * others / count.clamp_min(1))
        return Statistics(mixed.mean, mixed.var, statistics.mass)


class Instance(Source):
    """Each image's own statistics: instance normalization, in training and in evaluation."""

    is_plain = False
    uses_running_only = False

    def choose(self, view: LayerView) -> ChosenStatistics:
        """Choose the statistics of each image."""
        return _of_images(view)


class Optimized(Source):
    """DSON (Seo et al. 2020): each domain learns how to mix its BN statistics with those of the image.

    mu = w mu_domain + (1 - w) mu_image and var = w' var_domain + (1 - w') var_image, with w and w' of every domain
    between 0 and 1, first 0.5 (equations 3-5).

    Args:
        domain_count: G, the number of domains.
    """

    is_plain = False
    uses_running_only = False
    row_parameters = ("logits",)

    def __init__(self, domain_count: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(domain_count, 2))  # of the mean and of the variance

    def choose(self, view: LayerView) -> ChosenStatistics:
        """Choose the learned mixture of domain and image."""
        domain, image = super().choose(view), _of_images(view)
        share = view.assignment.look_up(torch.sigmoid(self.logits).to(domain.mean.dtype))  # (R, K, 2)
        mean = share[..., :1] * domain.mean + (1 - share[..., :1]) * image.mean
        var = share[..., 1:] * domain.var + (1 - share[..., 1:]) * image.var
        return ChosenStatistics(mean, var, domain.weight)


class Blend(Source):
    """A mixture of the outputs of BN and of instance normalization in every channel.

    BIN / MetaBIN (Nam & Kim 2018; Choi et al. 2021) learn the mixture, starting from BN.  IBN-a (Pan et al. 2018)
    fixes it: instance normalization for the first half of the channels, BN for the rest.

    Args:
        gate: (C,) in 0..1, the weight of BN.
        learned: Whether the gate is a parameter.
    """

    is_plain = False
    uses_running_only = False

    def __init__(self, gate: Tensor, learned: bool) -> None:
        super().__init__()
        if learned:
            self.gate: Tensor = nn.Parameter(gate)
        else:
            self.register_buffer("gate", gate)

    def choose(self, view: LayerView) -> ChosenStatistics:
        """Choose both statistics with their weights; maps of one position have only those of BN."""
        domain = super().choose(view)
        if view.positions < 2:
            return domain
        if self.training and isinstance(self.gate, nn.Parameter):
            with torch.no_grad():
                self.gate.clamp_(0.0, 1.0)
        image = _of_images(view)
        gate = self.gate.to(domain.mean.dtype)
        count = image.mean.shape[0]  # not len(), which would fix the size of an exported batch
        return ChosenStatistics(*(torch.cat([a.expand(count, *a.shape[1:]), b], 1) for a, b in (
            (domain.mean, image.mean),
            (domain.var, image.var),
            ((domain.weight * gate).expand(count, -1, -1), (1 - gate).expand(count, 1, -1)),
        )))  # fmt: skip
