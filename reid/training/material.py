"""What a training is made of: the rows of its manifests, their labels as numbers, the crops in memory.

Also fills in what an experiment leaves to the data.  Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from reid.config import Experiment, LabelField
from reid.data.loading import domain_indices, load_crops
from reid.data.manifest import read_manifest
from reid.data.sampling import identity_classes
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, DataError, unknown_name
from reid.norm import SYSTEMS
from reid.records import IntArray, Modality, Sample, Split, label_of
from reid.training.folder import samples_digest


@dataclass(frozen=True)
class Material:
    """The training rows and the names that follow from them.

    ``by`` are the fields that name a normalization domain, () for plain batch normalization; ``latent`` is
    the number of domains that no field names, where the network guesses them, else 0.
    """

    samples: tuple[Sample, ...]
    by: tuple[str, ...]
    latent: int = 0

    @cached_property
    def digest(self) -> str:
        """Short hash of the rows: a run must be continued on the same ones."""
        return samples_digest(self.samples)

    @cached_property
    def classes(self) -> tuple[IntArray, tuple[tuple[str, str], ...]]:
        """Class (N,) int64 of every row, and the (domain, identity) of every class."""
        return identity_classes(self.samples)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The normalization domains, sorted; DataError when a row lacks a field that names its own."""
        for field in self.by:
            without = sum(not getattr(sample, field) for sample in self.samples)
            if without:
                raise DataError(
                    f"{without} of {len(self.samples)} training rows have no {field}, which norm.by ="
                    f' {list(self.by)} needs; fill the column in, or set norm.kind = "batch"'
                )
        if self.latent:
            return tuple(f"latent-{number}" for number in range(self.latent))
        return tuple(sorted({label_of(sample, self.by) for sample in self.samples})) if self.by else ()


@dataclass(frozen=True)
class TrainingSet:
    """All N training crops and their labels, in memory.

    ``crops`` (N, 3, H, W) uint8; ``targets`` (N,) int64 in 0..I-1, the identity; ``modalities`` (N,)
    int64; ``domains`` (N,) int64 indices into the network's normalization domains, or None for plain
    batch normalization.
    """

    crops: Tensor
    targets: Tensor
    modalities: Tensor
    domains: Tensor | None


def training_samples(experiment: Experiment) -> tuple[Sample, ...]:
    """The rows an experiment trains on: split "train" of its manifests, of the domains it names."""
    rows = [sample for path in experiment.data.manifests for sample in read_manifest(Path(path))]
    wanted, known = experiment.data.domains, sorted({sample.domain for sample in rows})
    for domain in wanted:
        if domain not in known:
            raise DataError(f'data.domains: no row has domain "{domain}"; the manifests have {", ".join(known)}')
    kept = tuple(s for s in rows if s.split is Split.TRAIN and (not wanted or s.domain in wanted))
    if not kept:
        where = ", ".join(experiment.data.manifests)
        raise DataError(f'{where}: no row of split "train"{" in these domains" if wanted else ""} to train on')
    return kept


def resolve(experiment: Experiment, samples: Sequence[Sample]) -> Experiment:
    """The experiment with the fields that name a norm domain filled in, where it leaves them to the data.

    By default the field of the norm's kind, preceded by "domain" when there are several kinds of object.
    """
    norm = experiment.norm
    if norm.system not in SYSTEMS:
        raise ConfigError(f"norm.system: {unknown_name('norm system', norm.system, SYSTEMS)}")
    if SYSTEMS[norm.system].latent and norm.kind != "batch":
        raise ConfigError(
            f'norm.system "{norm.system}" guesses its domains: set norm.kind = "batch", got "{norm.kind}"'
        )
    if norm.kind == "batch" or norm.by:
        return experiment
    several = norm.kind != "domain" and len({sample.domain for sample in samples}) > 1
    by: tuple[LabelField, ...] = ("domain", norm.kind) if several else (norm.kind,)
    return experiment.model_copy(update={"norm": norm.model_copy(update={"by": by})})


def load_training_set(
    material: Material, transform: EvaluationTransform, *, threads: int, progress: bool
) -> TrainingSet:
    """All crops, resized, read with ``threads``, and their labels; ``progress`` draws a bar on stderr."""
    modalities = {value: number for number, value in enumerate(Modality)}
    with tqdm(desc="reading crops", total=len(material.samples), unit="img", disable=not progress) as bar:
        crops = load_crops(material.samples, transform, workers=threads, progress=bar.update)
    return TrainingSet(
        crops=crops,
        targets=torch.from_numpy(material.classes[0]),
        modalities=torch.tensor([modalities[sample.modality] for sample in material.samples]),
        domains=domain_indices(material.samples, material.by, material.names) if material.by else None,
    )
