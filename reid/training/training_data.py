"""What a training is made of: the rows of its manifests, their labels as numbers, the crops in memory.

Also fills in what an experiment leaves to the data.  Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from reid.config import DomainField, Experiment
from reid.data.loading import load_crops
from reid.data.manifest import read_manifest
from reid.data.sampling import identity_classes
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, DataError, unknown_name
from reid.norm import SYSTEMS
from reid.records import IntArray, Modality, Sample, Split, domain_of
from reid.training.objective import target_losses
from reid.training.run_folder import samples_digest

SOURCE = "source"  # before the name of a labelled domain that the unlabelled rows have too
UNKNOWN = -1  # the class of an unlabelled row


@dataclass(frozen=True)
class TrainingRows:
    """The training rows and the names that follow from them.

    ``domain_fields`` are the fields that name a normalization domain, () for plain batch normalization; ``latent`` is
    the number of domains that no field names, where the network guesses them, else 0.  ``unlabelled`` are rows
    whose identities are not known, of a site to adapt to.
    """

    samples: tuple[Sample, ...]
    domain_fields: tuple[str, ...]
    latent: int = 0
    unlabelled: tuple[Sample, ...] = ()

    @property
    def rows(self) -> tuple[Sample, ...]:
        """All N rows, the unlabelled ones last."""
        return self.samples + self.unlabelled

    @cached_property
    def digest(self) -> str:
        """Short hash of the rows: a run must be continued on the same ones."""
        return samples_digest(self.rows)

    @cached_property
    def classes(self) -> tuple[IntArray, tuple[tuple[str, str], ...]]:
        """Class int64 of every labelled row, and the (domain, identity) of every class."""
        return identity_classes(self.samples)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The normalization domain (N,) of every row.

        The unlabelled rows have the name that images of their site will have at test.  Where labelled rows have it
        too, theirs are domains of their own, "source/person" beside "person": the two sites may look different.
        """
        own, target = (
            [domain_of(sample, self.domain_fields) for sample in part] for part in (self.samples, self.unlabelled)
        )
        if self.domain_fields and not set(own).isdisjoint(target):
            own = [f"{SOURCE}/{label}" for label in own]
        return (*own, *target)

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The normalization domains, sorted; DataError when a row lacks a field that names its own."""
        for field in self.domain_fields:
            without = sum(not getattr(sample, field) for sample in self.rows)
            if without:
                raise DataError(
                    f"{without} of {len(self.rows)} training rows have no {field}, which norm.domain_fields ="
                    f' {list(self.domain_fields)} needs; fill the column in, or set norm.axis = "batch"'
                )
        if self.latent:
            return tuple(f"latent-{number}" for number in range(self.latent))
        return tuple(sorted(set(self.labels))) if self.domain_fields else ()


@dataclass(frozen=True)
class TrainingSet:
    """All N training crops and their labels, in memory.

    ``crops`` (N, 3, H, W) uint8; ``targets`` (N,) int64 in 0..I-1, the identity, -1 for unlabelled rows, which
    are the last; ``modalities`` (N,) int64; ``domains`` (N,) int64 indices into the network's normalization
    domains, or None for plain batch normalization.
    """

    crops: Tensor
    targets: Tensor
    modalities: Tensor
    domains: Tensor | None


def gather(experiment: Experiment) -> tuple[Experiment, TrainingRows]:
    """The rows an experiment trains on, and the experiment with everything filled in that it leaves to them."""
    samples, unlabelled = training_samples(experiment), unlabelled_samples(experiment)
    resolved = resolve(experiment, (*samples, *unlabelled))
    return resolved, material_of(resolved, samples, unlabelled)


def material_of(resolved: Experiment, samples: Sequence[Sample], unlabelled: Sequence[Sample]) -> TrainingRows:
    """The rows as the material of an experiment that :func:`resolve` has filled in."""
    norm = resolved.norm
    return TrainingRows(tuple(samples), norm.domain_fields, SYSTEMS[norm.layers].latent, tuple(unlabelled))


def training_samples(experiment: Experiment) -> tuple[Sample, ...]:
    """The labelled rows an experiment trains on: split "train" of its manifests, of the categories it names."""
    rows = [sample for path in experiment.data.manifests for sample in read_manifest(Path(path))]
    wanted, known = experiment.data.categories, sorted({sample.category for sample in rows})
    for category in wanted:
        if category not in known:
            raise DataError(f'data.categories: no row has category "{category}"; the manifests have {", ".join(known)}')
    kept = tuple(s for s in rows if s.split is Split.TRAIN and (not wanted or s.category in wanted))
    if not kept:
        where = ", ".join(experiment.data.manifests)
        raise DataError(f'{where}: no row of split "train"{" of these categories" if wanted else ""} to train on')
    return kept


def unlabelled_samples(experiment: Experiment) -> tuple[Sample, ...]:
    """The rows of ``data.unlabelled``, of the categories it names, without the identities that may stand there.

    Split "train" of each manifest or, where it has none (a film that was cut into crops), "gallery"; queries are
    for testing and never trained on.
    """
    wanted, kept = experiment.data.categories, list[Sample]()
    for path in experiment.data.unlabelled:
        rows = [s for s in read_manifest(Path(path)) if not wanted or s.category in wanted]
        parts = ([s for s in rows if s.split is split] for split in (Split.TRAIN, Split.GALLERY))
        found = next((part for part in parts if part), None)
        if found is None:
            raise DataError(
                f'{path}: no row of split "train" or "gallery"{" of these categories" if wanted else ""}'
                " for data.unlabelled"
            )
        kept += [replace(sample, identity="") for sample in found]
    return tuple(kept)


def resolve(experiment: Experiment, samples: Sequence[Sample]) -> Experiment:
    """The experiment with the fields that name a norm domain filled in, where it leaves them to the data.

    By default the field of the norm's kind, preceded by "domain" when there are several kinds of object.
    """
    norm = experiment.norm
    _check_norm(experiment)
    if norm.axis == "batch" or norm.domain_fields:
        return experiment
    several = norm.axis != "category" and len({sample.category for sample in samples}) > 1
    domain_fields: tuple[DomainField, ...] = ("category", norm.axis) if several else (norm.axis,)
    return experiment.model_copy(update={"norm": norm.model_copy(update={"domain_fields": domain_fields})})


def _check_norm(experiment: Experiment) -> None:
    """Refuse norms that there are none of, or that could not be trained on these rows."""
    norm, unlabelled = experiment.norm, experiment.data.unlabelled
    if norm.layers not in SYSTEMS:
        raise ConfigError(f"norm.system: {unknown_name('norm system', norm.layers, SYSTEMS)}")
    if SYSTEMS[norm.layers].latent and norm.axis != "batch":
        raise ConfigError(
            f'norm.system "{norm.layers}" guesses its domains: set norm.axis = "batch", got "{norm.axis}"'
        )
    if norm.target_loss and norm.target_loss not in target_losses():
        raise ConfigError(f"norm.system: {unknown_name('loss on unlabelled rows', norm.target_loss, target_losses())}")
    if norm.target_loss and not unlabelled:
        raise ConfigError(f'norm.system "{norm.system}" has a loss on unlabelled rows: name some in data.unlabelled')
    if unlabelled and norm.axis != "batch" and norm.affine == "domain" and not norm.target_loss:
        raise ConfigError(
            "no loss would train the scale and shift that the unlabelled domains have of their own: set"
            f' norm.affine = "shared", or norm.system = "{norm.layers}+entropy"'
        )


def load_training_set(
    material: TrainingRows, transform: EvaluationTransform, *, threads: int, progress: bool
) -> TrainingSet:
    """All crops, resized, read with ``threads``, and their labels; ``progress`` draws a bar on stderr."""
    modalities = {value: number for number, value in enumerate(Modality)}
    domains = {name: number for number, name in enumerate(material.domains)}
    with tqdm(desc="reading crops", total=len(material.rows), unit="img", disable=not progress) as bar:
        crops = load_crops(material.rows, transform, workers=threads, progress=bar.update)
    unknown = torch.full((len(material.unlabelled),), UNKNOWN, dtype=torch.int64)
    return TrainingSet(
        crops=crops,
        targets=torch.cat([torch.from_numpy(material.classes[0]), unknown]),
        modalities=torch.tensor([modalities[sample.modality] for sample in material.rows]),
        domains=torch.tensor([domains[label] for label in material.labels]) if material.domain_fields else None,
    )
