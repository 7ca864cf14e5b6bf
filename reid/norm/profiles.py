"""Measured statistics of named domains as a value that is saved, merged, compared and shrunk toward a prior.

Profiles belong to the weights that they were measured on.  :mod:`reid.norm.calibrate` measures and installs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from reid.errors import DataError, WeightsError, unknown_name
from reid.norm.covariance import CovarianceStatistics
from reid.norm.profile_centers import merge_centers
from reid.norm.profile_file import read_profiles, write_profiles
from reid.norm.site_cohort import SiteCohort, join_cohorts
from reid.norm.statistics import Statistics

MIXED = "profiles: one has covariances where the other has none; they are of two networks"
Tables = Mapping[str, Tensor]


@dataclass(frozen=True)
class Profiles:
    """How the images of G named domains are normalized in one network: statistics, centers and scores.

    The statistics are those of every norm layer.  They are empty where the network has no BatchNorm, or keeps its own
    statistics for all domains.

    Attributes:
        domains: The names of the domains.
        images: How many images each domain was measured on.
        mean: (G, C) for each layer by name.
        var: (G, C) for each layer, biased: over exactly these images.
        weights: The fingerprint of the weights that they belong to; "" when it is not known.
        domain_fields: The fields of a sample that name its domain.
        cov: (G, C / g, g, g) for each layer that whitens.
        date: When they were measured (ISO 8601, UTC).
        prior: What they were shrunk toward and how far, such as "16 of the network"; "" when they were not.
        centers: (G, D), what is subtracted from the embeddings of each domain; a row of zeros subtracts nothing.  None
            where no domain is centered.
        levels: What each domain is normalized by, such as "statistics+centering"; () where nobody recorded it.
        score_norm: The normalization of scores to use by default: "csls", "snorm" or "none"; "" leaves it open.
        choice: In one line, how the levels were chosen; "" where they were given.
        cohort: Embeddings of crops of the domains, for normalized scores of cameras that a gallery lacks; None without.

    Example:
        >>> old = Profiles(("door",), (3,), {"bn": torch.tensor([[0.0]])}, {"bn": torch.tensor([[1.0]])})
        >>> new = Profiles(("door",), (1,), {"bn": torch.tensor([[4.0]])}, {"bn": torch.tensor([[1.0]])})
        >>> old.merge(new).images, old.merge(new).mean["bn"].item()
        ((4,), 1.0)
        >>> new.drift(old)
        {'door': 4.0}
    """

    domains: tuple[str, ...]
    images: tuple[int, ...]
    mean: Tables
    var: Tables
    weights: str = ""
    domain_fields: tuple[str, ...] = field(default=("camera",))
    cov: Tables = field(default_factory=dict)
    date: str = ""
    prior: str = ""
    centers: Tensor | None = None
    levels: tuple[str, ...] = ()
    score_norm: str = ""
    choice: str = ""
    cohort: SiteCohort | None = None

    def statistics(self, layer: str) -> Statistics | CovarianceStatistics:
        """Return what was measured in a layer; the mass of a domain is its number of images."""
        mean = self.mean[layer]
        mass = torch.tensor(self.images, dtype=mean.dtype)
        if layer in self.cov:
            return CovarianceStatistics(mean, self.cov[layer], mass)
        return Statistics(mean, self.var[layer], mass)

    def select(self, domains: Sequence[str]) -> Profiles:
        """Select some domains.

        Args:
            domains: Their names, in the order of the result.

        Returns:
            Profiles of these domains.

        Raises:
            DataError: If a name is unknown.
        """
        for name in domains:
            if name not in self.domains:
                raise DataError(f"profiles: {unknown_name('domain', name, self.domains)}")
        rows = [self.domains.index(name) for name in domains]
        mean, var, cov = ({k: t[rows] for k, t in table.items()} for table in (self.mean, self.var, self.cov))
        images = tuple(self.images[row] for row in rows)
        centers = None if self.centers is None else self.centers[rows]
        levels = tuple(self.levels[row] for row in rows) if self.levels else ()
        cohort = None if self.cohort is None else self.cohort.of_domains(domains)
        return replace(
            self, domains=tuple(domains), images=images, mean=mean, var=var, cov=cov, centers=centers, levels=levels,
            cohort=cohort,
        )  # fmt: skip

    def merge(self, other: Profiles) -> Profiles:
        """Merge the profiles of different images: a domain that is in both counts all its images.

        Args:
            other: Profiles of the same weights and domain fields.

        Returns:
            Profiles of the domains of both, exactly as if all images had been measured together.

        Raises:
            WeightsError: If the profiles are of different weights, layers or fields, or both have the statistics and
                the center of the same domain, because the center changes with the statistics.
        """
        self.check_same_network(other)
        names = self.domains + tuple(name for name in other.domains if name not in self.domains)
        together = {
            layer: merge_statistics(self._spread(layer, names), other._spread(layer, names)) for layer in self.mean
        }
        counts = [dict(zip(p.domains, p.images, strict=True)) for p in (self, other)]
        images = tuple(sum(count.get(name, 0) for count in counts) for name in names)
        merged = replace(_with_statistics(self, together), domains=names, images=images, prior=self.priors(other))
        return replace(
            merged,
            date=max(self.date, other.date),
            centers=merge_centers(self, other),
            levels=self.levels_of(other, names),
            score_norm=other.score_norm or self.score_norm,
            choice=other.choice or self.choice,
            cohort=join_cohorts(self.cohort, other.cohort),
        )

    def levels_text(self) -> str:
        """Say what the domains are normalized by: one level where all are alike, else the level of each."""
        if len(set(self.levels)) == 1:
            return self.levels[0]
        return ", ".join(f"{name}: {level}" for name, level in zip(self.domains, self.levels, strict=False))

    def levels_of(self, other: Profiles, domains: Sequence[str]) -> tuple[str, ...]:
        """Return the levels of some domains that these or the other profiles have; those of the other go first."""
        if not (self.levels and other.levels):
            return ()
        known = {**dict(zip(self.domains, self.levels, strict=True)),
                 **dict(zip(other.domains, other.levels, strict=True))}  # fmt: skip
        return tuple(known[name] for name in domains)

    def priors(self, other: Profiles) -> str:
        """Say what the profiles of both were shrunk toward, in one text."""
        return " or ".join(sorted({self.prior, other.prior} - {""}))

    def diff(self, other: Profiles) -> dict[str, Tensor]:
        """Measure in every layer how far the domains have moved from those of ``other``.

        sqrt(W2^2 / sum over channels of sigma^2), where W2 is the 2-Wasserstein distance and sigma that of ``other``:
        0 where nothing changed, 1 when the activations have moved by as much as they vary.

        Args:
            other: Profiles of the same weights and domain fields.

        Returns:
            (K,) for each layer: one number for each domain that is in both, in the order of ``self.domains``.

        Raises:
            DataError: If no domain is in both.
            WeightsError: If the profiles are of different weights, layers or fields.
        """
        self.check_same_network(other)
        common = tuple(name for name in self.domains if name in other.domains)
        if not common:
            raise DataError(
                f"profiles: no domain in common; one has {', '.join(self.domains)},"
                f" the other {', '.join(other.domains)}"
            )
        ours, theirs = self.select(common), other.select(common)
        found = {}
        for layer in self.mean:
            old = Statistics(theirs.mean[layer], theirs.var[layer], torch.ones(len(common)))
            new = Statistics(ours.mean[layer], ours.var[layer], torch.ones(len(common)))
            found[layer] = (new.wasserstein(old) / old.var.sum(1).clamp_min(1e-12)).sqrt()
        return found

    def drift(self, stored: Profiles) -> dict[str, float]:
        """Measure how far each domain has moved from the ``stored`` one: the mean of :meth:`diff` over the layers.

        Returns:
            One number for each domain that is in both, by name.
        """
        found = torch.stack(list(self.diff(stored).values())).mean(0)
        common = [name for name in self.domains if name in stored.domains]
        return dict(zip(common, found.tolist(), strict=True))

    def shrunk(self, prior: float, parents: Mapping[str, str] | None = None) -> Profiles:
        """Shrink the statistics of each domain toward its parent, as if the parent were ``prior`` more images.

        This follows Schneider et al. 2020, with the variance between the means.

        Args:
            prior: The weight of the parent in images; 0 changes nothing.
            parents: The group of each domain by name, such as the modality of a camera.  The parent of a domain is
                then its group, and the parent of a group is everything measured.  Without it everything measured is
                the parent of every domain.

        Returns:
            New profiles of the same domains.
        """
        if not prior:
            return self
        groups = sorted({(parents or {}).get(name, "") for name in self.domains})
        member = torch.tensor([groups.index((parents or {}).get(name, "")) for name in self.domains])
        shrunk = {layer: _shrink(self.statistics(layer), member, len(groups), prior) for layer in self.mean}
        return replace(_with_statistics(self, shrunk), prior=f"{prior:g} of the cameras", centers=None, cohort=None)

    def towards(self, source: Profiles, prior: float) -> Profiles:
        """Shrink the statistics of each domain toward those of ``source``, which the network has without them.

        mu = (n mu_own + N mu_source) / (n + N) and var = (n var_own + N var_source) / (n + N), covariances alike, with
        n the images of the domain and N = ``prior``: Schneider et al. 2020, as published, without the variance between
        the means.

        Args:
            source: Profiles of at least the same domains.
            prior: The weight of ``source`` in images; 0 changes nothing.

        Returns:
            New profiles of the same domains.

        Raises:
            WeightsError: If the profiles are of different weights, layers or fields.
        """
        self.check_same_network(source)
        if not prior:
            return self
        old = source.select(self.domains)
        share = torch.tensor([[images / (images + prior)] for images in self.images])
        shrunk = {layer: _interpolate(old.statistics(layer), self.statistics(layer), share) for layer in self.mean}
        return replace(_with_statistics(self, shrunk), prior=f"{prior:g} of the network", centers=None, cohort=None)

    def save(self, path: Path) -> None:
        """Write the profiles to a safetensors file, completely or not at all.

        Raises:
            WeightsError: If the file cannot be written.
        """
        write_profiles(path, self)

    @classmethod
    def load(cls, path: Path) -> Profiles:
        """Read the profiles that :meth:`save` wrote.

        Raises:
            WeightsError: If the file cannot be read, is another file, or is damaged.
        """
        return cls(**read_profiles(path))

    def check_same_network(self, other: Profiles) -> None:
        """Raise WeightsError unless the other profiles are of the same weights, layers and fields."""
        if (self.weights, self.domain_fields, set(self.mean)) != (other.weights, other.domain_fields, set(other.mean)):
            raise WeightsError(
                f"profiles of weights {self.weights or '?'} by {'/'.join(self.domain_fields)} and of"
                f" {other.weights or '?'} by {'/'.join(other.domain_fields)} do not go together;"
                " calibrate both with the same weights and fields"
            )

    def _spread(self, layer: str, names: Sequence[str]) -> Statistics | CovarianceStatistics:
        """Return the statistics of a layer with a row for each of ``names``, of mass 0 where nothing was measured."""
        statistics = self.statistics(layer)
        weights = torch.tensor([[float(name == own) for own in self.domains] for name in names])
        return statistics.mix(weights.to(statistics.mean.dtype))


def merge_statistics(
    ours: Statistics | CovarianceStatistics, theirs: Statistics | CovarianceStatistics
) -> Statistics | CovarianceStatistics:
    """Merge the statistics of one layer, with or without covariances; raise WeightsError if only one has them."""
    if isinstance(ours, CovarianceStatistics) and isinstance(theirs, CovarianceStatistics):
        return ours.merge(theirs)
    if isinstance(ours, Statistics) and isinstance(theirs, Statistics):
        return ours.merge(theirs)
    raise WeightsError(MIXED)


def _interpolate(
    source: Statistics | CovarianceStatistics, own: Statistics | CovarianceStatistics, share: Tensor
) -> Statistics | CovarianceStatistics:
    if isinstance(source, CovarianceStatistics) and isinstance(own, CovarianceStatistics):
        return source.interpolate(own, share)
    if isinstance(source, Statistics) and isinstance(own, Statistics):
        return source.interpolate(own, share)
    raise WeightsError(MIXED)


def _with_statistics(profiles: Profiles, found: Mapping[str, Statistics | CovarianceStatistics]) -> Profiles:
    """Replace the statistics of every layer."""
    diagonal = {
        layer: statistics.diagonal() if isinstance(statistics, CovarianceStatistics) else statistics
        for layer, statistics in found.items()
    }
    return replace(
        profiles,
        mean={layer: statistics.mean for layer, statistics in diagonal.items()},
        var={layer: statistics.var for layer, statistics in diagonal.items()},
        cov={layer: one.cov for layer, one in found.items() if isinstance(one, CovarianceStatistics)},
    )


def _shrink(
    statistics: Statistics | CovarianceStatistics, member: Tensor, group_count: int, prior: float
) -> Statistics | CovarianceStatistics:
    """Shrink every group toward everything, and every domain toward its group, ``member`` (G,) int64 of 0..K-1."""
    mass = statistics.mass
    one_hot = torch.nn.functional.one_hot(member, group_count).to(mass.dtype)  # (G, K)
    share = (one_hot * mass[:, None] / (one_hot * mass[:, None]).sum(0).clamp_min(1)).T  # (K, G)
    whole = (mass / mass.sum().clamp_min(1))[None]
    own = ((one_hot.T @ mass) / (one_hot.T @ mass + prior).clamp_min(1e-12))[:, None]
    groups = own * share + (1 - own) * whole  # (K, G): each group as a mixture of domains
    own = (mass / (mass + prior).clamp_min(1e-12))[:, None]
    mixed = statistics.mix(own * torch.eye(len(mass), dtype=mass.dtype) + (1 - own) * (one_hot @ groups))
    return replace(mixed, mass=mass)
