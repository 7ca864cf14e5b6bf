"""Training that adds one domain to a finished network and leaves everything else as it is, bit for bit.

What the domain gets is its own: statistics, scale and shift in every norm (a universal representation, Bilen and
Vedaldi 2017), series or parallel adapters besides (Rebuffi et al. 2017, 2018), or CovNorm's low-rank form of adapters
that it has already (Li and Vasconcelos 2019).  Knows nothing of how the finished network was trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from reid.config import Experiment, to_toml
from reid.data.transforms import EvaluationTransform, TrainTransform
from reid.errors import ConfigError
from reid.models.checkpoint import Checkpoint
from reid.models.embedder import Embedder
from reid.models.weights.tensor_tables import digest, read_table, table_of
from reid.norm import convert_norm, domain_batchnorm, domains_of
from reid.norm.added_domain import only_domain, with_domain
from reid.norm.specialised.adapters import adapted_layers, adapter_domains, add_adapter_domain, add_adapters
from reid.norm.specialised.covnorm import compress_adapters
from reid.norm.tensor_file import write_table
from reid.training.initial_weights import transform_of
from reid.training.loop import Learner, TrainingLoop, make_optimizer
from reid.training.run_folder import RunFolder, replace_file
from reid.training.training_data import TrainingRows, TrainingSet, load_training_set, training_samples
from reid.training.training_run import final_network, run_epochs, torch_settings

FORMAT = "reid-part-1"
BATCH = 64
BY = ("category",)


class Apart(BaseModel):
    """``base`` names the variation whose network gets the domain; ``compress`` makes adapters it has smaller."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    adapters: Literal["none", "series", "parallel"] = "none"
    compress: bool = False


def with_new_domain(network: nn.Module, known: str, name: str, adapters: str = "none") -> nn.Module:
    """A copy of ``network`` with the domain ``name`` beside those it has; the others compute what they did.

    A network without domains is that of the domain ``known``.  The new one starts as the first, with adapters (of the
    kind "series" or "parallel") that add nothing.  A network that has the domain already is returned as it is.
    """
    if name in adapter_domains(network):
        return network
    if not domains_of(network):
        network = convert_norm(network, domain_batchnorm((known,)))
    if adapters != "none" and not adapted_layers(network):
        network = add_adapters(network, domains_of(network), adapters)
    return add_adapter_domain(network, name, like=domains_of(network)[0])


def train_apart(
    base: Checkpoint, known: str, how: Apart, experiment: Experiment, out: Path, progress: bool
) -> Checkpoint:
    """Train the one domain of ``experiment`` on the network of ``base``; the whole network afterwards.

    ``known`` is the domain of a base without domains.  The folder ``out`` holds the trained domain alone; an
    interrupted training continues, a finished one is only read.
    """
    samples = training_samples(experiment)
    material = TrainingRows(samples, BY)
    (name,) = material.domains
    folder = RunFolder(out)
    folder.open(experiment)
    _claim(folder, {"base": base.weights, **how.model_dump()})
    network = with_new_domain(base.network, known, name, how.adapters)
    if not folder.weights.exists():
        _train_part(network, name, how, experiment, material, folder, base, progress)
    part = only_domain(network, name)
    part.load_state_dict(read_table(folder.weights)[0])
    return _checkpoint(with_domain(network, part), base, str(folder.weights))


def _train_part(
    network: nn.Module,
    name: str,
    how: Apart,
    experiment: Experiment,
    material: TrainingRows,
    folder: RunFolder,
    base: Checkpoint,
    progress: bool,
) -> None:
    transform = transform_of(experiment, base)
    with torch_settings(experiment.train.threads):
        data = load_training_set(material, transform, threads=experiment.train.threads, progress=progress)
        if how.compress:
            network = compress_adapters(network, _images(data, transform), name)
        part = cast(Embedder, only_domain(network, name))
        learner = Learner(part, len(material.classes[1]))
        augment = TrainTransform(**experiment.augment.model_dump())
        loop = TrainingLoop(
            learner, make_optimizer(learner, experiment.train), data, augment, transform, experiment.train
        )
        run_epochs(loop, folder, material, progress, None)
        trained = final_network(learner.embedder, data, material, experiment, transform)
    metadata = {"format": FORMAT, "domain": name, "base": base.weights, "experiment": to_toml(experiment)}
    write_table(folder.weights, table_of(trained), metadata)


def _images(data: TrainingSet, transform: EvaluationTransform) -> Iterator[Tensor]:
    for crops in torch.split(data.crops, BATCH):
        yield transform.normalise(crops)


def _checkpoint(network: nn.Module, base: Checkpoint, source: str) -> Checkpoint:
    """The whole network as a checkpoint in memory; its domains are named by the kind of object."""
    fingerprint = digest(table_of(network))[:16]
    names = adapter_domains(network)
    return replace(
        base,
        network=network.eval(),
        domain_fields=BY,
        domains=names,
        fingerprint=fingerprint,
        weights=fingerprint,
        source=source,
    )


def _claim(folder: RunFolder, wanted: dict[str, object]) -> None:
    """Note what the run starts from; ConfigError when it began from something else."""
    path = folder.path / "apart.json"
    if not path.exists():
        replace_file(path, lambda part: part.write_text(json.dumps(wanted), encoding="utf-8"))
    began = json.loads(path.read_text(encoding="utf-8"))
    if began != wanted:
        key = next(key for key in wanted if began.get(key) != wanted[key])
        raise ConfigError(
            f"{folder.path} holds a domain trained on another network ({key}: {began.get(key)}, now {wanted[key]});"
            " delete it, or choose another folder with --out"
        )
