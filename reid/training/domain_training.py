"""Training that adds one domain to a finished network and leaves everything else as it is, bit for bit.

The domain gets statistics, scale and shift of its own in every norm (a universal representation, Bilen and Vedaldi
2017). It may also get series or parallel adapters (Rebuffi et al. 2017, 2018), or CovNorm's low-rank form of adapters
that it has already (Li and Vasconcelos 2019).
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
from reid.structured_text import read_json
from reid.training.epochs import run_epochs
from reid.training.initial_weights import make_transform
from reid.training.loop import Learner, TrainingLoop, make_optimizer
from reid.training.row_choice import leave_out_singletons
from reid.training.run_folder import RunFolder, replace_file
from reid.training.training_data import LEARNED, TrainingRows, TrainingSet, load_training_set, training_samples
from reid.training.training_run import final_network, torch_settings

FORMAT = "reid-part-1"
ORIGIN_FILE = "apart.json"  # in the run folder: what the training started from; the name is that of version 0.1.0
BATCH = 64
DOMAIN_FIELDS = ("category",)


class DomainAddition(BaseModel):
    """How a domain is added to a finished network.

    Attributes:
        base: The variation whose network gets the domain.
        adapters: Which adapters the domain gets beside its norms.
        compress: Whether adapters that it has already are made smaller.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    adapters: Literal["none", "series", "parallel"] = "none"
    compress: bool = False


def add_trainable_domain(network: nn.Module, known: str, name: str, adapters: str = "none") -> nn.Module:
    """Copy a network and add a domain to it; for the other domains it computes what it did.

    The new domain starts as a copy of the first one, with adapters that change nothing yet.

    Args:
        network: The network. One that has the domain already is returned as it is.
        known: The name of the domain of a network without domains.
        name: The name of the new domain.
        adapters: "none", "series" or "parallel".
    """
    if name in adapter_domains(network):
        return network
    if not domains_of(network):
        network = convert_norm(network, domain_batchnorm((known,)))
    if adapters != "none" and not adapted_layers(network):
        network = add_adapters(network, domains_of(network), adapters)
    return add_adapter_domain(network, name, like=domains_of(network)[0])


def train_added_domain(
    base: Checkpoint, known: str, addition: DomainAddition, experiment: Experiment, out: Path, progress: bool
) -> Checkpoint:
    """Train the one domain of an experiment on a finished network.

    An interrupted training continues; a finished one is only read.

    Args:
        base: The finished network.
        known: The name of the domain of a base without domains.
        addition: What the domain gets.
        experiment: Its training rows have a single category.
        out: The folder of the run, which holds only the weights of the added domain.
        progress: Whether to draw a bar on stderr.

    Returns:
        The whole network, with the domain.

    Raises:
        ConfigError: The folder holds a run of another experiment, or one that started from another network, or another
            training is at work in it.
    """
    all_rows = TrainingRows(training_samples(experiment), DOMAIN_FIELDS)
    rows, _ = leave_out_singletons(all_rows, experiment.data.singletons)
    (name,) = rows.domains
    folder = RunFolder(out)
    with folder.held():
        folder.open(experiment)
        _check_origin(folder, {"base": base.weights, **addition.model_dump()})
        network = add_trainable_domain(base.network, known, name, addition.adapters)
        if not folder.weights.exists():
            _train_domain(network, name, addition, experiment, rows, folder, base, progress)
    part = only_domain(network, name)
    part.load_state_dict(read_table(folder.weights)[0])
    return _make_checkpoint(with_domain(network, part), base, str(folder.weights))


def _train_domain(
    network: nn.Module,
    name: str,
    addition: DomainAddition,
    experiment: Experiment,
    rows: TrainingRows,
    folder: RunFolder,
    base: Checkpoint,
    progress: bool,
) -> None:
    """Train the domain ``name`` of the network and save its weights in the folder."""
    transform = make_transform(experiment, base)
    with torch_settings(experiment.train.threads):
        data = load_training_set(rows, transform, threads=experiment.train.threads, progress=progress)
        if addition.compress:
            network = compress_adapters(network, _image_batches(data, transform), name)
        part = cast(Embedder, only_domain(network, name))
        learner = Learner(part, len(rows.classes[1]), experiment.train.second_view == LEARNED)
        augment = TrainTransform(**experiment.augment.model_dump())
        optimizer = make_optimizer(learner, experiment.train)
        loop = TrainingLoop(learner, optimizer, data, augment, transform, experiment.train)
        run_epochs(loop, folder, rows, progress, None)
        trained = final_network(learner.embedder, data, rows, experiment, transform)
    metadata = {"format": FORMAT, "domain": name, "base": base.weights, "experiment": to_toml(experiment)}
    write_table(folder.weights, table_of(trained), metadata)


def _image_batches(data: TrainingSet, transform: EvaluationTransform) -> Iterator[Tensor]:
    for crops in torch.split(data.crops, BATCH):
        yield transform.normalise(crops)


def _make_checkpoint(network: nn.Module, base: Checkpoint, source: str) -> Checkpoint:
    """Make a checkpoint in memory of the whole network; its domains are named by the category."""
    fingerprint = digest(table_of(network))[:16]
    names = adapter_domains(network)
    return replace(
        base,
        network=network.eval(),
        domain_fields=DOMAIN_FIELDS,
        domains=names,
        fingerprint=fingerprint,
        weights=fingerprint,
        source=source,
    )


def _check_origin(folder: RunFolder, wanted: dict[str, object]) -> None:
    """Record what the run starts from; ConfigError if it began from something else."""
    path = folder.path / ORIGIN_FILE
    if not path.exists() or not folder.has_results:
        replace_file(path, lambda part: part.write_text(json.dumps(wanted), encoding="utf-8"))
    try:
        began = dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: damaged; delete the folder to train again") from error
    if began != wanted:
        key = next(key for key in wanted if began.get(key) != wanted[key])
        raise ConfigError(
            f"{folder.path} holds a domain trained on another network ({key}: {began.get(key)}, now {wanted[key]});"
            " delete it, or choose another folder with --out"
        )
