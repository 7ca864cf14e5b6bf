"""What a training reads: the rows of its manifests, their labels as numbers, and the crops in memory.

It also fills in the settings of an experiment that depend on the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from reid.config import DomainField, Experiment
from reid.data.manifest import read_manifest
from reid.data.sampling import identity_classes
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, DataError, unknown_name
from reid.norm import SYSTEMS
from reid.records import IntArray, Modality, Sample, Split, domain_of
from reid.training.crop_cache import CropSource
from reid.training.objective import target_losses
from reid.training.run_folder import samples_digest

LEARNED = "learned"  # second views by a network
GREY = "grey"  # before the name of a domain whose visible images have a second view in a domain of its own
SOURCE = "source"  # before the name of a labelled domain that the unlabelled rows have too
UNKNOWN = -1  # the class of an unlabelled row


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a training and the names that follow from them.

    Attributes:
        samples: The labelled rows.
        domain_fields: The fields that name a normalization domain; () for plain batch normalization.
        latent: The number of domains that no field names, where the network guesses them; else 0.
        unlabelled: Rows of a site to adapt to, whose identities are not known.
        grey_views: Whether second views of visible images have normalization domains of their own in training.
    """

    samples: tuple[Sample, ...]
    domain_fields: tuple[str, ...]
    latent: int = 0
    unlabelled: tuple[Sample, ...] = ()
    grey_views: bool = False

    @property
    def all_samples(self) -> tuple[Sample, ...]:
        """All N rows, the unlabelled ones last."""
        return self.samples + self.unlabelled

    @cached_property
    def digest(self) -> str:
        """A short hash of the rows: a run must continue on the same ones."""
        return samples_digest(self.all_samples)

    @cached_property
    def classes(self) -> tuple[IntArray, tuple[tuple[str, str], ...]]:
        """The class int64 of every labelled row, and the (category, identity) of every class."""
        return identity_classes(self.samples)

    @cached_property
    def domain_names(self) -> tuple[str, ...]:
        """The name (N,) of the normalization domain of every row.

        Unlabelled rows have the name that images of their site will have at test. Where labelled rows have the same
        name, theirs become domains of their own, "source/person" beside "person", because the two sites may look
        different.
        """
        labelled, unlabelled = (
            [domain_of(sample, self.domain_fields) for sample in part] for part in (self.samples, self.unlabelled)
        )
        if self.domain_fields and not set(labelled).isdisjoint(unlabelled):
            labelled = [f"{SOURCE}/{name}" for name in labelled]
        return (*labelled, *unlabelled)

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """The normalization domains, sorted; DataError where a row lacks a field that names its domain."""
        for field in self.domain_fields:
            without = sum(not getattr(sample, field) for sample in self.all_samples)
            if without:
                raise DataError(
                    f"{without} of {len(self.all_samples)} training rows have no {field}, which norm.domain_fields ="
                    f' {list(self.domain_fields)} needs; fill the column in, or set norm.axis = "batch"'
                )
        if self.latent:
            return tuple(f"latent-{number}" for number in range(self.latent))
        return tuple(sorted(set(self.domain_names))) if self.domain_fields else ()

    @cached_property
    def grey_domains(self) -> tuple[str, ...]:
        """The domains of second views, one for each domain of visible labelled rows; no test image has one of them."""
        if not self.grey_views:
            return ()
        pairs = zip(self.samples, self.domain_names, strict=False)  # the labelled rows come first
        return tuple(sorted({f"{GREY}/{name}" for sample, name in pairs if sample.modality is Modality.VISIBLE}))

    @property
    def training_domains(self) -> tuple[str, ...]:
        """The domains of a network in training: those that it keeps, and behind them those of second views."""
        return self.domains + self.grey_domains


@dataclass(frozen=True)
class TrainingSet:
    """All N crops of a training and their labels, in memory.

    Attributes:
        crops: Images (N, 3, H, W) uint8.
        targets: The identity (N,) int64 of each crop, 0..I-1; -1 for unlabelled crops, which come last.
        modalities: The modality (N,) int64 of each crop.
        domains: The normalization domain (N,) int64 of each crop, an index into the domains of the network; None for
            plain batch normalization.
        grey_domains: For each domain (G,) int64 the domain of second views of its visible images; None where these
            have the domain of their image.
        recorded: Whether a camera took each crop (N,) bool; None where all are recorded.
    """

    crops: Tensor
    targets: Tensor
    modalities: Tensor
    domains: Tensor | None
    grey_domains: Tensor | None = None
    recorded: Tensor | None = None


def read_training_rows(experiment: Experiment) -> tuple[Experiment, TrainingRows]:
    """Read the rows of an experiment and fill in what it leaves to the data."""
    samples, unlabelled = training_samples(experiment), unlabelled_samples(experiment)
    resolved = choose_domain_fields(experiment, (*samples, *unlabelled))
    return resolved, make_training_rows(resolved, samples, unlabelled)


def make_training_rows(resolved: Experiment, samples: Sequence[Sample], unlabelled: Sequence[Sample]) -> TrainingRows:
    """Make the rows of an experiment that :func:`choose_domain_fields` has filled in."""
    norm = resolved.norm
    view = resolved.train.second_view
    grey_views = view == GREY or (view == LEARNED and bool(norm.domain_fields))
    return TrainingRows(tuple(samples), norm.domain_fields, SYSTEMS[norm.layers].latent, tuple(unlabelled), grey_views)


def training_samples(experiment: Experiment) -> tuple[Sample, ...]:
    """Read the labelled rows of an experiment: split "train" of its manifests, of the categories that it names.

    Raises:
        DataError: No row has one of the categories, or there is no row to train on.
    """
    rows = [sample for path in experiment.data.manifests for sample in read_manifest(Path(path))]
    wanted, known = experiment.data.categories, sorted({sample.category for sample in rows})
    for category in wanted:
        if category not in known:
            raise DataError(f'data.categories: no row has category "{category}"; the manifests have {", ".join(known)}')
    chosen = tuple(s for s in rows if s.split is Split.TRAIN and (not wanted or s.category in wanted))
    if not chosen:
        where = ", ".join(experiment.data.manifests)
        raise DataError(f'{where}: no row of split "train"{" of these categories" if wanted else ""} to train on')
    return chosen


def unlabelled_samples(experiment: Experiment) -> tuple[Sample, ...]:
    """Read the rows of ``data.unlabelled``, of the categories that the experiment names, and drop their identities.

    They are the rows of split "train" of each manifest. A manifest that has none, such as that of a video that was cut
    into crops, gives its rows of split "gallery". Queries are for testing and never used.

    Raises:
        DataError: A manifest has no such row.
    """
    wanted, chosen = experiment.data.categories, list[Sample]()
    for path in experiment.data.unlabelled:
        rows = [s for s in read_manifest(Path(path)) if not wanted or s.category in wanted]
        parts = ([s for s in rows if s.split is split] for split in (Split.TRAIN, Split.GALLERY))
        found = next((part for part in parts if part), None)
        if found is None:
            raise DataError(
                f'{path}: no row of split "train" or "gallery"{" of these categories" if wanted else ""}'
                " for data.unlabelled"
            )
        chosen += [replace(sample, identity="") for sample in found]
    return tuple(chosen)


def choose_domain_fields(experiment: Experiment, samples: Sequence[Sample]) -> Experiment:
    """Fill in the fields that name a normalization domain, where the experiment leaves them to the data.

    The default is the field of the axis, preceded by the category if the samples have several categories.

    Raises:
        ConfigError: The system is unknown, or it cannot be trained on these rows.
    """
    norm = experiment.norm
    _check_norm(experiment)
    if norm.axis == "batch" or norm.domain_fields:
        return experiment
    several = norm.axis != "category" and len({sample.category for sample in samples}) > 1
    domain_fields: tuple[DomainField, ...] = ("category", norm.axis) if several else (norm.axis,)
    return experiment.model_copy(update={"norm": norm.model_copy(update={"domain_fields": domain_fields})})


def _check_norm(experiment: Experiment) -> None:
    """Refuse unknown systems and losses, and norms that these rows cannot train."""
    norm, unlabelled = experiment.norm, experiment.data.unlabelled
    if norm.layers not in SYSTEMS:
        raise ConfigError(f"norm.system: {unknown_name('norm system', norm.layers, SYSTEMS)}")
    if SYSTEMS[norm.layers].latent and norm.axis != "batch":
        raise ConfigError(
            f'norm.system "{norm.layers}" guesses its domains: set norm.axis = "batch", got "{norm.axis}"'
        )
    if norm.target_loss and norm.target_loss not in target_losses():
        raise ConfigError(f"norm.system: {unknown_name('loss on unlabelled rows', norm.target_loss, target_losses())}")
    if experiment.train.second_view == GREY and norm.axis == "batch":
        raise ConfigError(
            'train.second_view = "grey" gives second views a normalization domain of their own: set norm.axis to'
            ' "modality" or "camera", or train.second_view = "own"'
        )
    if norm.target_loss and not unlabelled:
        raise ConfigError(f'norm.system "{norm.system}" has a loss on unlabelled rows: name some in data.unlabelled')
    if unlabelled and norm.axis != "batch" and norm.affine == "domain" and not norm.target_loss:
        raise ConfigError(
            "no loss would train the scale and shift that the unlabelled domains have of their own: set"
            f' norm.affine = "shared", or norm.system = "{norm.layers}+entropy"'
        )


def load_training_set(
    rows: TrainingRows, transform: EvaluationTransform, *, threads: int, progress: bool
) -> TrainingSet:
    """Load all crops into memory, resized, and their labels.

    Args:
        rows: The rows of the training.
        transform: How crops are resized.
        threads: How many threads read files.
        progress: Whether to draw a bar on stderr.
    """
    return read_training_set(rows, CropSource(transform, threads, progress))


def read_training_set(rows: TrainingRows, source: CropSource) -> TrainingSet:
    """Read all crops from where a source keeps them, and make their labels."""
    modalities = {value: number for number, value in enumerate(Modality)}
    domains = {name: number for number, name in enumerate(rows.training_domains)}
    grey = [domains.get(f"{GREY}/{name}", number) for number, name in enumerate(rows.domains)]
    recorded = torch.tensor([not sample.generated for sample in rows.all_samples])
    unknown = torch.full((len(rows.unlabelled),), UNKNOWN, dtype=torch.int64)
    return TrainingSet(
        crops=source.load(rows.all_samples),
        targets=torch.cat([torch.from_numpy(rows.classes[0]), unknown]),
        modalities=torch.tensor([modalities[sample.modality] for sample in rows.all_samples]),
        domains=torch.tensor([domains[name] for name in rows.domain_names]) if rows.domain_fields else None,
        grey_domains=torch.tensor(grey) if rows.grey_domains else None,
        recorded=None if recorded.all() else recorded,
    )
