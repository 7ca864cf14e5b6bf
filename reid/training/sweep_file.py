"""Comparison files: several trainings that differ in a few keys, and where they are scored.

A file names what all trainings share (``[experiment]``), how each differs (``[[variation]]``), the sites they are
scored at (``[[evaluation]]``) and how many seeds each gets.  This module reads it and checks it against the data; it
trains nothing and knows no method by name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reid.config import Data, Experiment, parse_config
from reid.data.manifest import check_files, read_manifest
from reid.errors import ConfigError, DataError, unknown_name
from reid.norm import DomainPolicy
from reid.old_names import current_experiment
from reid.records import Sample, Split, domain_of
from reid.training.domain_training import Apart
from reid.training.site_statistics import STATISTICS
from reid.training.training_data import material_of, resolve, training_samples, unlabelled_samples


class EvaluationSite(BaseModel):
    """A place to score at: queries, gallery and, of split "train", the crops that may be calibrated on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    manifest: Path  # relative to the working directory

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """All rows; DataError when the file or one of its pictures is missing."""
        rows = tuple(read_manifest(self.manifest))
        check_files(rows)
        return rows


class _VariationEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")  # what is extra are the sections of an experiment

    name: str = Field(min_length=1)
    statistics: tuple[str, ...] = ()  # () takes the file's
    apart: Apart | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    about: str = ""
    seeds: int = Field(3, ge=1)
    directions: tuple[str, ...] = ("visible->visible", "infrared->visible")
    statistics: tuple[str, ...] = Field(("kept", "measured"), min_length=1)
    experiment: dict[str, Any]
    evaluation: tuple[EvaluationSite, ...] = Field(min_length=1)
    variation: tuple[_VariationEntry, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Variation:
    """One row of the sweep, or several: one for each of ``statistics``.

    ``statistics`` are names of :data:`~reid.training.site_statistics.STATISTICS`.

    With ``apart``, the experiment's domain is added to the finished network of ``base``.
    """

    name: str
    experiment: Experiment
    statistics: tuple[str, ...]
    apart: Apart | None = None
    base: Variation | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        """The kinds of object it is scored on; () for all."""
        own = self.experiment.data.categories
        return own if self.base is None else tuple(dict.fromkeys((*self.base.domains, *own)))

    def of_seed(self, number: int) -> Experiment:
        """The experiment of seed ``number``, counted from the seed of the file."""
        recipe = self.experiment.train
        return self.experiment.model_copy(update={"train": recipe.model_copy(update={"seed": recipe.seed + number})})


@dataclass(frozen=True)
class Sweep:
    """What a comparison file says; shown are its ``directions`` and "all", that of data with one modality."""

    title: str
    about: str
    seeds: int
    directions: tuple[str, ...]
    statistics: tuple[str, ...]  # of a variation that names none
    sites: tuple[EvaluationSite, ...]
    variations: tuple[Variation, ...]

    def only(self, names: Sequence[str]) -> Sweep:
        """The variations of these names; all for ()."""
        known = [variation.name for variation in self.variations]
        for name in names:
            if name not in known:
                raise ConfigError(f"--only: {unknown_name('variation', name, known)}")
        kept = tuple(variation for variation in self.variations if not names or variation.name in names)
        return replace(self, variations=kept)

    def check(self) -> None:
        """Raise the error that a run would meet later: missing data, domains that do not fit, a wrong policy."""
        rows: dict[Data, tuple[tuple[Sample, ...], tuple[Sample, ...]]] = {}
        for variation in self.variations:
            key = variation.experiment.data
            if key not in rows:
                rows[key] = training_samples(variation.experiment), unlabelled_samples(variation.experiment)
            try:
                _check_variation(variation, rows[key], self.sites)
            except ConfigError as error:
                raise ConfigError(f'variation "{variation.name}": {error}') from error


def load_sweep(path: Path, seeds: int | None = None) -> Sweep:
    """Read a comparison file, perhaps with another number of seeds; ConfigError in one line for what is wrong in it."""
    try:
        file = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such comparison file; see scripts/experiments/compare-norms.toml") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    variations: list[Variation] = []
    for entry in file.variation:
        variations.append(_variation(path, file, entry, variations))
    for kind, names in (("variation", [v.name for v in variations]), ("evaluation", [s.name for s in file.evaluation])):
        folders = [slug(name) for name in names]
        twice = next((name for name in names if folders.count(slug(name)) > 1), None)
        if twice is not None:
            raise ConfigError(f'{path}: two of [[{kind}]] would be called "{slug(twice)}"; give each its own name')
    return Sweep(
        file.title,
        file.about,
        seeds or file.seeds,
        file.directions,
        file.statistics,
        file.evaluation,
        tuple(variations),
    )


def slug(name: str) -> str:
    """The name as a part of a file's name: small letters and digits, joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _variation(path: Path, file: _File, entry: _VariationEntry, before: Sequence[Variation]) -> Variation:
    where = f'{path}: variation "{entry.name}"'
    table = current_experiment(file.experiment, f"{path}: experiment")
    for section, leaves in current_experiment(entry.model_extra or {}, where).items():
        shared = table.get(section, {})
        table[section] = {**shared, **leaves} if isinstance(leaves, dict) and isinstance(shared, dict) else leaves
    statistics = entry.statistics or file.statistics
    for name in statistics:
        if name not in STATISTICS:
            raise ConfigError(f"{where}: {unknown_name('statistics', name, STATISTICS)}")
    experiment = parse_config(table, where)
    if entry.apart is None:
        return Variation(entry.name, experiment, statistics)
    bases = {variation.name: variation for variation in before}
    if entry.apart.base not in bases:
        raise ConfigError(f"{where}: {unknown_name('apart.base above it', entry.apart.base, bases)}")
    base = bases[entry.apart.base]
    if len(experiment.data.categories) != 1 or not base.domains or (base.apart is None and len(base.domains) != 1):
        raise ConfigError(f"{where}: apart adds one domain to a network of one: name one in data.categories of both")
    if (experiment.norm.axis, experiment.norm.affine, statistics) != ("category", "domain", ("kept",)):
        raise ConfigError(f'{where}: apart needs norm.axis = "category", norm.affine = "domain", statistics = ["kept"]')
    if experiment.data.unlabelled:
        raise ConfigError(f"{where}: apart trains a domain on its labelled rows: leave data.unlabelled out")
    return Variation(entry.name, experiment, statistics, entry.apart, base)


def _check_variation(
    variation: Variation, rows: tuple[tuple[Sample, ...], tuple[Sample, ...]], sites: Sequence[EvaluationSite]
) -> None:
    """Refuse domains that do not fit the system, and policies that do not fit the domains or the sites.

    ``rows``: the labelled ones and the unlabelled ones.
    """
    resolved = resolve(variation.experiment, sum(rows, ()))
    norm, material = resolved.norm, material_of(resolved, *rows)
    names = material.domains
    if names or norm.layers != "batch":
        DomainPolicy(norm.axis, names, norm.affine, norm.layers)
    if material.latent and "measured" in variation.statistics:
        raise ConfigError('its domains are guessed, so none can be measured: leave "measured" out of statistics')
    if not norm.domain_fields and {"mixture", "ensemble"} & set(variation.statistics):
        raise ConfigError('"mixture" and "ensemble" are of several domains, and this network has none: set norm.axis')
    for site in sites:
        found = rows_of(site, variation.domains)
        if variation.base is not None:
            continue
        unknown = (
            sorted({domain_of(sample, norm.domain_fields) for sample in found} - set(names))
            if norm.domain_fields
            else []
        )
        if unknown and "kept" in variation.statistics:
            raise ConfigError(
                f'at {site.name} training has left no statistics of {unknown[0]}: replace "kept" in statistics by'
                ' "measured", "mixture" or "ensemble"'
            )


def rows_of(site: EvaluationSite, wanted: Sequence[str]) -> tuple[Sample, ...]:
    """The rows of a site that show these kinds of object, all for ()."""
    rows = tuple(sample for sample in site.samples if not wanted or sample.category in wanted)
    if not any(sample.split is Split.QUERY for sample in rows):
        raise DataError(f'{site.manifest}: no row of split "query"{" shows " + ", ".join(wanted) if wanted else ""}')
    return rows
