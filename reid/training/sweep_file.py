"""Sweep files: several trainings that differ in a few keys, and the sites at which they are scored.

A file states what all trainings share (``[experiment]``), how each differs (``[[variation]]``), the sites at which they
are scored (``[[evaluation]]``) and how many seeds each gets. This module reads it and checks it against the data.
"""

from __future__ import annotations

import re
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
from reid.old_names import current_experiment, current_variation
from reid.records import Sample, Split, domain_of
from reid.structured_text import read_toml
from reid.training.domain_training import DomainAddition
from reid.training.site_statistics import STATISTICS
from reid.training.training_data import (
    choose_domain_fields,
    make_training_rows,
    training_samples,
    unlabelled_samples,
)


class EvaluationSite(BaseModel):
    """A site at which networks are scored.

    Attributes:
        name: The name of the site in tables.
        manifest: Its rows, relative to the working directory: queries, gallery and, of split "train", the crops on
            which cameras may be calibrated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    manifest: Path

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """All rows; DataError if the file or one of its images is missing."""
        rows = tuple(read_manifest(self.manifest))
        check_files(rows)
        return rows


class _VariationEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")  # the other keys are sections of an experiment

    name: str = Field(min_length=1)
    statistics: tuple[str, ...] = ()  # () takes those of the file
    add_domain: DomainAddition | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    about: str = ""
    seeds: int = Field(3, ge=1, le=1000)
    directions: tuple[str, ...] = ("visible->visible", "infrared->visible")
    statistics: tuple[str, ...] = Field(("kept", "measured"), min_length=1)
    experiment: dict[str, Any]
    evaluation: tuple[EvaluationSite, ...] = Field(min_length=1)
    variation: tuple[_VariationEntry, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Variation:
    """One training of a sweep, with a row in the table for each of its statistics.

    Attributes:
        name: The name of the variation.
        experiment: The experiment of its first seed.
        statistics: Names of :data:`~reid.training.site_statistics.STATISTICS`.
        addition: How the domain of the experiment is added to the finished network of ``base``; None for an ordinary
            training.
        base: The variation whose network gets the domain.
    """

    name: str
    experiment: Experiment
    statistics: tuple[str, ...]
    addition: DomainAddition | None = None
    base: Variation | None = None

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories on which the network is scored; () for all."""
        own = self.experiment.data.categories
        return own if self.base is None else tuple(dict.fromkeys((*self.base.categories, *own)))

    def of_seed(self, number: int) -> Experiment:
        """Return the experiment of seed ``number``, counted from the seed of the file."""
        recipe = self.experiment.train
        return self.experiment.model_copy(update={"train": recipe.model_copy(update={"seed": recipe.seed + number})})


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file.

    Attributes:
        title: The title of the page of results.
        about: The text of the page.
        seeds: The number of trainings of each variation.
        directions: The directions that the tables show. They also show "all" where the data have one modality.
        statistics: The statistics of a variation that names none.
        sites: Where networks are scored.
        variations: The trainings.
    """

    title: str
    about: str
    seeds: int
    directions: tuple[str, ...]
    statistics: tuple[str, ...]
    sites: tuple[EvaluationSite, ...]
    variations: tuple[Variation, ...]

    def only(self, names: Sequence[str]) -> Sweep:
        """Keep the variations of these names; () keeps all. ConfigError for an unknown name."""
        known = [variation.name for variation in self.variations]
        for name in names:
            if name not in known:
                raise ConfigError(f"--only: {unknown_name('variation', name, known)}")
        chosen = tuple(variation for variation in self.variations if not names or variation.name in names)
        return replace(self, variations=chosen)

    def check(self) -> None:
        """Raise the error that a run would raise later: missing data, domains that do not fit, a wrong policy."""
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
    """Read a sweep file.

    Args:
        path: The TOML file.
        seeds: Another number of seeds than that of the file.

    Raises:
        ConfigError: The file cannot be read, or something in it is wrong; the message has one line.
    """
    file = _read_file(path)
    variations: list[Variation] = []
    for entry in file.variation:
        variations.append(_make_variation(path, file, entry, variations))
    for table, names in (
        ("variation", [v.name for v in variations]),
        ("evaluation", [s.name for s in file.evaluation]),
    ):
        slugs = [make_slug(name) for name in names]
        twice = next((slug for slug in slugs if slugs.count(slug) > 1), None)
        if twice is not None:
            raise ConfigError(f'{path}: two of [[{table}]] would be called "{twice}"; give each its own name')
    return Sweep(
        file.title,
        file.about,
        seeds or file.seeds,
        file.directions,
        file.statistics,
        file.evaluation,
        tuple(variations),
    )


def make_slug(name: str) -> str:
    """Turn a name into a part of a file name: small letters and digits, joined by hyphens.

    Example:
        >>> make_slug("IBN + ISW")
        'ibn-isw'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _read_file(path: Path) -> _File:
    try:
        table = read_toml(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such sweep file; see scripts/experiments/compare-norms.toml") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    entries = table.get("variation")
    if isinstance(entries, list):
        table["variation"] = [
            current_variation(entry, str(path)) if isinstance(entry, dict) else entry for entry in entries
        ]
    try:
        return _File.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error


def _make_variation(path: Path, file: _File, entry: _VariationEntry, before: Sequence[Variation]) -> Variation:
    where = f'{path}: variation "{entry.name}"'
    table = current_experiment(file.experiment, f"{path}: experiment")
    for section, leaves in current_experiment(entry.model_extra or {}, where).items():
        shared = table.get(section, {})
        table[section] = {**shared, **leaves} if isinstance(leaves, dict) and isinstance(shared, dict) else leaves
    statistics = entry.statistics or file.statistics
    for name in statistics:
        if name not in STATISTICS:
            raise ConfigError(f"{where}: {unknown_name('statistics', name, STATISTICS)}")
    variation = Variation(entry.name, parse_config(table, where), statistics)
    if entry.add_domain is None:
        return variation
    bases = {variation.name: variation for variation in before}
    if entry.add_domain.base not in bases:
        raise ConfigError(f"{where}: {unknown_name('add_domain.base above it', entry.add_domain.base, bases)}")
    base = bases[entry.add_domain.base]
    _check_addition(where, variation, base)
    return replace(variation, addition=entry.add_domain, base=base)


def _check_addition(where: str, variation: Variation, base: Variation) -> None:
    """Refuse an experiment that does not train one domain beside those of its base."""
    experiment, wants_one = variation.experiment, "add_domain adds one domain to a network of one"
    data, norm = experiment.data, experiment.norm
    if len(data.categories) != 1 or not base.categories or (base.addition is None and len(base.categories) != 1):
        raise ConfigError(f"{where}: {wants_one}: name one in data.categories of both")
    if (norm.axis, norm.affine, variation.statistics) != ("category", "domain", ("kept",)):
        raise ConfigError(
            f'{where}: add_domain needs norm.axis = "category", norm.affine = "domain", statistics = ["kept"]'
        )
    if data.unlabelled:
        raise ConfigError(f"{where}: add_domain trains a domain on its labelled rows: leave data.unlabelled out")


def _check_variation(
    variation: Variation, rows: tuple[tuple[Sample, ...], tuple[Sample, ...]], sites: Sequence[EvaluationSite]
) -> None:
    """Refuse domains that do not fit the system, and statistics that do not fit the domains or the sites.

    ``rows`` are the labelled and the unlabelled ones.
    """
    resolved = choose_domain_fields(variation.experiment, sum(rows, ()))
    norm, training_rows = resolved.norm, make_training_rows(resolved, *rows)
    names = training_rows.domains
    if names or norm.layers != "batch":
        DomainPolicy(norm.axis, names, norm.affine, norm.layers)
    if training_rows.latent and "measured" in variation.statistics:
        raise ConfigError('its domains are guessed, so none can be measured: leave "measured" out of statistics')
    if not norm.domain_fields and {"mixture", "ensemble"} & set(variation.statistics):
        raise ConfigError('"mixture" and "ensemble" are of several domains, and this network has none: set norm.axis')
    for site in sites:
        found = samples_of_site(site, variation.categories)
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


def samples_of_site(site: EvaluationSite, wanted: Sequence[str]) -> tuple[Sample, ...]:
    """Return the rows of a site that show these categories; () returns all.

    Raises:
        DataError: The site has no query among them.
    """
    rows = tuple(sample for sample in site.samples if not wanted or sample.category in wanted)
    if not any(sample.split is Split.QUERY for sample in rows):
        raise DataError(f'{site.manifest}: no row of split "query"{" shows " + ", ".join(wanted) if wanted else ""}')
    return rows
