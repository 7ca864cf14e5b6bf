"""Measured statistics of named domains as a value: saved, merged, compared, drawn towards a prior.

A profile belongs to the weights it was measured on.  Nothing here runs a network;
:mod:`reid.norm.calibrate` measures profiles and installs them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reid.errors import DataError, WeightsError, unknown_name
from reid.norm.covariance import CovStats
from reid.norm.statistics import Stats
from reid.norm.tensor_file import write_table
from reid.old_names import current_fields, fields_in_files

FORMAT = "reid-profiles-1"
MIXED = "profiles: one has covariances where the other has none; they are of two networks"
DAMAGED = "{path}: damaged, its {what} not what was saved; calibrate again"
Tables = Mapping[str, Tensor]
_TABLES = {"mean": "running_mean", "var": "running_var", "cov": "running_cov"}


@dataclass(frozen=True)
class Profiles:
    """The statistics of named domains in every norm layer of one network.

    ``mean`` and ``var`` hold (G, C) per layer name, ``var`` biased (over exactly these images), ``cov``
    (G, C / g, g, g) for layers that whiten; ``images`` (G,) says how many images each of ``domains``
    was measured on; ``weights`` is the fingerprint of the weights they belong to ("" when not known),
    ``domain_fields`` the fields of a sample that name its domain, ``date`` when they were measured (ISO 8601, UTC),
    ``prior`` what they were drawn towards and how far, such as "16 of the network", "" where they were not.
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

    def stats(self, layer: str) -> Stats | CovStats:
        """What was measured in a layer; the mass of a domain is its number of images."""
        mean = self.mean[layer]
        mass = torch.tensor(self.images, dtype=mean.dtype)
        if layer in self.cov:
            return CovStats(mean, self.cov[layer], mass)
        return Stats(mean, self.var[layer], mass)

    def select(self, names: Sequence[str]) -> Profiles:
        """Only the domains ``names``, in that order."""
        for name in names:
            if name not in self.domains:
                raise DataError(f"profiles: {unknown_name('domain', name, self.domains)}")
        rows = [self.domains.index(name) for name in names]
        mean, var, cov = ({k: t[rows] for k, t in table.items()} for table in (self.mean, self.var, self.cov))
        images = tuple(self.images[row] for row in rows)
        return replace(self, domains=tuple(names), images=images, mean=mean, var=var, cov=cov)

    def merge(self, other: Profiles) -> Profiles:
        """The profiles of all images of both: a domain in both counts all its images, exactly as measured at once."""
        self._check_same_network(other)
        names = self.domains + tuple(name for name in other.domains if name not in self.domains)
        together = {layer: merged(self._spread(layer, names), other._spread(layer, names)) for layer in self.mean}
        counts = [dict(zip(p.domains, p.images, strict=True)) for p in (self, other)]
        images = tuple(sum(count.get(name, 0) for count in counts) for name in names)
        return replace(
            _from_stats(self, together), domains=names, images=images, date=max(self.date, other.date),
            prior=self.priors(other),
        )  # fmt: skip

    def priors(self, other: Profiles) -> str:
        """What the profiles of both were drawn towards."""
        return " or ".join(sorted({self.prior, other.prior} - {""}))

    def diff(self, other: Profiles) -> dict[str, Tensor]:
        """How far apart the domains that both have lie: 2-Wasserstein distance over deviation, (K,) per layer.

        sqrt(W2^2 / sum over channels of sigma^2), with sigma that of ``other``: 0 where nothing changed, 1 when
        the activations have moved by as much as they vary.  K domains, in the order of ``self.domains``.
        """
        self._check_same_network(other)
        common = tuple(name for name in self.domains if name in other.domains)
        if not common:
            raise DataError(
                f"profiles: no domain in common; one has {', '.join(self.domains)},"
                f" the other {', '.join(other.domains)}"
            )
        ours, theirs = self.select(common), other.select(common)
        found = {}
        for layer in self.mean:
            old = Stats(theirs.mean[layer], theirs.var[layer], torch.ones(len(common)))
            new = Stats(ours.mean[layer], ours.var[layer], torch.ones(len(common)))
            found[layer] = (new.wasserstein(old) / old.var.sum(1).clamp_min(1e-12)).sqrt()
        return found

    def drift(self, stored: Profiles) -> dict[str, float]:
        """One number for each domain that both have: the mean of :meth:`diff` over the layers."""
        found = torch.stack(list(self.diff(stored).values())).mean(0)
        common = [name for name in self.domains if name in stored.domains]
        return dict(zip(common, found.tolist(), strict=True))

    def shrunk(self, prior: float, parents: Mapping[str, str] | None = None) -> Profiles:
        """Statistics of few images, drawn towards those of more: each as if ``prior`` images of its parent were among
        its own (Schneider et al. 2020, with the variance between the means).

        ``parents`` names the group of a domain (the modality of a camera); a group's own parent is everything
        measured.  Without it that is every domain's parent.  ``prior`` 0 changes nothing.
        """
        if not prior:
            return self
        groups = sorted({(parents or {}).get(name, "") for name in self.domains})
        member = torch.tensor([groups.index((parents or {}).get(name, "")) for name in self.domains])
        shrunk = {layer: _shrunk(self.stats(layer), member, len(groups), prior) for layer in self.mean}
        return replace(_from_stats(self, shrunk), prior=f"{prior:g} of the cameras")

    def towards(self, source: Profiles, prior: float) -> Profiles:
        """Statistics of few images, drawn towards those of ``source``, which the network has without them.

        mu = (n mu_own + N mu_source) / (n + N) and var = (n var_own + N var_source) / (n + N), covariances alike, with
        n the domain's images and N = ``prior``: Schneider et al. 2020, as published, without the variance between the
        means.  ``source`` has the same domains at least; ``prior`` 0 changes nothing.
        """
        self._check_same_network(source)
        if not prior:
            return self
        old = source.select(self.domains)
        share = torch.tensor([[images / (images + prior)] for images in self.images])
        drawn = {layer: _between(old.stats(layer), self.stats(layer), share) for layer in self.mean}
        return replace(_from_stats(self, drawn), prior=f"{prior:g} of the network")

    def save(self, path: Path) -> None:
        """Write to a safetensors file, in one move."""
        tensors = {
            f"{layer}.{suffix}": tensor.contiguous()
            for key, suffix in _TABLES.items()
            for layer, tensor in getattr(self, key).items()
        }
        header = {key: getattr(self, key) for key in ("images", "weights", "date", "prior")}
        header |= {"names": self.domains, "by": fields_in_files(self.domain_fields)}
        header["digest"] = _digest(tensors)
        text = json.dumps(header)
        check = hashlib.sha256(text.encode()).hexdigest()
        write_table(path, tensors, {"format": FORMAT, "profiles": text, "check": check})

    @classmethod
    def load(cls, path: Path) -> Profiles:
        """Read what :meth:`save` wrote; WeightsError when the file is something else."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f'{path}: cannot read camera profiles ({error}); make them with "reid calibrate"'
            ) from error
        if metadata.get("format") != FORMAT:
            raise WeightsError(f'{path}: expected camera profiles written by "reid calibrate", got another file')
        text = metadata.get("profiles", "")
        if metadata.get("check") not in (None, hashlib.sha256(text.encode()).hexdigest()):  # older files have none
            raise WeightsError(DAMAGED.format(path=path, what="header is"))
        try:
            header = json.loads(text)
            names, images, digest, weights = (header[key] for key in ("names", "images", "digest", "weights"))
            domain_fields = current_fields(header["by"])
        except (ValueError, LookupError, TypeError) as error:
            raise WeightsError(DAMAGED.format(path=path, what="header is")) from error
        if digest != _digest(tensors):
            raise WeightsError(DAMAGED.format(path=path, what="statistics are"))
        tables = {
            key: {k.removesuffix(f".{suffix}"): t for k, t in tensors.items() if k.endswith(f".{suffix}")}
            for key, suffix in _TABLES.items()
        }
        date, prior = (header.get(key, "") for key in ("date", "prior"))  # older files do not say these
        return cls(
            tuple(names), tuple(images), weights=weights, domain_fields=domain_fields, date=date, prior=prior, **tables
        )

    def _check_same_network(self, other: Profiles) -> None:
        if (self.weights, self.domain_fields, set(self.mean)) != (other.weights, other.domain_fields, set(other.mean)):
            raise WeightsError(
                f"profiles of weights {self.weights or '?'} by {'/'.join(self.domain_fields)} and of"
                f" {other.weights or '?'} by {'/'.join(other.domain_fields)} do not go together;"
                " calibrate both with the same weights and fields"
            )

    def _spread(self, layer: str, names: Sequence[str]) -> Stats | CovStats:
        """The statistics of a layer with a row for each of ``names``, of mass 0 where there is nothing."""
        stats = self.stats(layer)
        weights = torch.tensor([[float(name == own) for own in self.domains] for name in names])
        return stats.mix(weights.to(stats.mean.dtype))


def merged(ours: Stats | CovStats, theirs: Stats | CovStats) -> Stats | CovStats:
    """Both groups of images together, whichever kind of statistics a layer keeps."""
    if isinstance(ours, CovStats) and isinstance(theirs, CovStats):
        return ours.merge(theirs)
    if isinstance(ours, Stats) and isinstance(theirs, Stats):
        return ours.merge(theirs)
    raise WeightsError(MIXED)


def _between(source: Stats | CovStats, own: Stats | CovStats, share: Tensor) -> Stats | CovStats:
    """The line from ``source`` to ``own``, whichever kind of statistics a layer keeps."""
    if isinstance(source, CovStats) and isinstance(own, CovStats):
        return source.lerp(own, share)
    if isinstance(source, Stats) and isinstance(own, Stats):
        return source.lerp(own, share)
    raise WeightsError(MIXED)


def _from_stats(profiles: Profiles, found: Mapping[str, Stats | CovStats]) -> Profiles:
    """Profiles with other statistics, layer by layer."""
    diagonal = {layer: s.diagonal() if isinstance(s, CovStats) else s for layer, s in found.items()}
    return replace(
        profiles,
        mean={layer: s.mean for layer, s in diagonal.items()},
        var={layer: s.var for layer, s in diagonal.items()},
        cov={layer: s.cov for layer, s in found.items() if isinstance(s, CovStats)},
    )


def _shrunk(stats: Stats | CovStats, member: Tensor, groups: int, prior: float) -> Stats | CovStats:
    """Every group drawn to the whole, and every domain to its group; ``member`` (G,) int64 names the groups."""
    mass = stats.mass
    one_hot = torch.nn.functional.one_hot(member, groups).to(mass.dtype)  # (G, K)
    share = (one_hot * mass[:, None] / (one_hot * mass[:, None]).sum(0).clamp_min(1)).T  # (K, G)
    whole = (mass / mass.sum().clamp_min(1))[None]
    own = ((one_hot.T @ mass) / (one_hot.T @ mass + prior).clamp_min(1e-12))[:, None]
    crowds = own * share + (1 - own) * whole  # (K, G): what each group is a mixture of
    own = (mass / (mass + prior).clamp_min(1e-12))[:, None]
    mixed = stats.mix(own * torch.eye(len(mass), dtype=mass.dtype) + (1 - own) * (one_hot @ crowds))
    return replace(mixed, mass=mass)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names and values, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()
