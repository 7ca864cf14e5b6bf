"""A whole training: read the data, build the network, run the epochs, measure the domains, save.

``train`` depends on the experiment, the data and the number of threads only: one seed drives the
first weights, the batches and the augmentation, each epoch from its own part of it.  So a run that
was interrupted continues from its last checkpoint to the same numbers, bit for bit on one machine.
It knows nothing of command lines.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from tqdm import tqdm

from reid.config import Experiment, to_toml
from reid.data.transforms import EvaluationTransform, TrainTransform
from reid.errors import DataError, WeightsError
from reid.models.checkpoint import Checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import SYSTEMS, DomainPolicy, calibrate, convert_norm, install, mixes_domains
from reid.training.batches import BatchSampler
from reid.training.initial_weights import fill, note_start, open_start, transform_of
from reid.training.loop import EpochReport, Learner, TrainingLoop, make_optimizer
from reid.training.run_folder import RunFolder
from reid.training.training_data import TrainingRows, TrainingSet, gather, load_training_set

OnEpoch = Callable[[EpochReport], object]
CALIBRATION_BATCH = 128

# Parts of the seed, so that no two uses draw the same numbers.
_INIT, _AUGMENT, _LAYERS, _CALIBRATE = range(4)


def train(
    experiment: Experiment,
    out: Path,
    *,
    resume: bool = True,
    progress: bool = False,
    on_epoch: OnEpoch | None = None,
) -> Path:
    """Train as ``experiment`` says in the folder ``out``; returns the file of the final weights.

    A folder with a finished run of the same experiment is left as it is; an unfinished one is continued
    from its last epoch, or started over when ``resume`` is false.  A folder of another experiment is a
    ConfigError.  ``progress`` draws a bar on stderr; ``on_epoch`` is called after each epoch was saved.

    After the last epoch the statistics of every normalization domain are measured over its training
    crops, unaugmented, with the final weights.  Plain batch normalization keeps its running averages.
    Unlabelled crops make domains like the others: see :attr:`~reid.training.training_data.Material.labels`.
    """
    folder = RunFolder(out)
    if not resume:
        folder.clear()
    experiment, material = gather(experiment)
    start = open_start(experiment.network)
    experiment = note_start(experiment, start)
    folder.open(experiment)
    if folder.weights.exists():
        folder.check_weights()
        return folder.weights
    norm = experiment.norm
    transform = transform_of(experiment, start)
    with torch_settings(experiment.train.threads):
        learner = build_learner(experiment, material, start)
        data = load_training_set(material, transform, threads=experiment.train.threads, progress=progress)
        augment = TrainTransform(**experiment.augment.model_dump())
        optimizer = make_optimizer(learner, experiment.train)
        loop = TrainingLoop(learner, optimizer, data, augment, transform, experiment.train, norm.target_loss)
        run_epochs(loop, folder, material, progress, on_epoch)
        network = final_network(learner.embedder, data, material, experiment, transform)
    domain_fields = () if SYSTEMS[norm.layers].guesses else material.domain_fields
    extra = {"experiment": to_toml(experiment), "data": material.digest}
    spec = learner.embedder.spec
    save_checkpoint(folder.weights, network, spec, transform, domain_fields, material.domains, extra)
    return folder.weights


def build_learner(experiment: Experiment, material: TrainingRows, start: Checkpoint | None = None) -> Learner:
    """A fresh network, from ``start`` where it is given, with its norms converted and a classifier.

    The same one for the same seed.  All domains begin with the statistics, scale and shift of ``start``.
    """
    torch.manual_seed(_seed(experiment.train.seed, _INIT))
    parts = experiment.network
    embedder = Embedder(NetworkSpec(parts.backbone, parts.pooling, parts.neck))
    if start is not None:
        fill(embedder, start)
    network: nn.Module = embedder
    norm = experiment.norm
    if material.domains or norm.layers != "batch":
        network = convert_norm(network, DomainPolicy(norm.axis, material.domains, norm.affine, norm.layers))
    learner = Learner(cast(Embedder, network), len(material.classes[1]))
    return learner.to(memory_format=torch.channels_last)


def final_network(
    embedder: Embedder,
    data: TrainingSet,
    material: TrainingRows,
    experiment: Experiment,
    transform: EvaluationTransform,
) -> nn.Module:
    """The trained network, in evaluation mode, with the statistics of every domain measured afresh.

    After training in bfloat16 its kernels are rounded to the nearest float16, which is finer, before the measuring.
    """
    network: nn.Module = embedder.eval()
    if experiment.train.precision == "bfloat16":
        round_kernels(network)
    if data.domains is not None:
        batches = _calibration_batches(data.domains, experiment, mixes_domains(network))
        measured = ((transform.normalise(data.crops[rows]), domains) for rows, domains in batches)
        network = install(network, calibrate(network, measured, material.domains, domain_fields=material.domain_fields))
    return network.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def round_kernels(network: nn.Module) -> None:
    """Bring the trained weights of convolutions and linear layers to the nearest float16: half the file."""
    for module in network.modules():
        if isinstance(module, _ConvNd | nn.Linear) and module.weight.requires_grad:
            module.weight.copy_(module.weight.half())


def _calibration_batches(domains: Tensor, experiment: Experiment, mixed: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Row numbers and domains (B,) of batches that hold one domain each, its images in random order.

    Where domains share statistics (``mixed``) every batch holds all of them, as in training.
    """
    generator = torch.Generator().manual_seed(_seed(experiment.train.seed, _CALIBRATE))
    chosen = []
    for domain in range(int(domains.max()) + 1):
        rows = torch.nonzero(domains == domain)[:, 0]
        chosen.append(rows[torch.randperm(len(rows), generator=generator)])
    if mixed:
        together = torch.cat(chosen)
        chosen = [together[torch.randperm(len(together), generator=generator)]]
    for rows in chosen:
        for part in torch.tensor_split(rows, -(-len(rows) // CALIBRATION_BATCH)):  # of nearly equal size
            yield part, domains[part]


def run_epochs(
    loop: TrainingLoop, folder: RunFolder, material: TrainingRows, progress: bool, on_epoch: OnEpoch | None
) -> None:
    """Train from the last checkpoint, or the beginning, to the last epoch; save after each."""
    recipe = loop.recipe
    history = _restore(loop, folder, material)
    sampler = BatchSampler(material.samples, material.unlabelled, recipe, loop.objective.views)
    with tqdm(
        desc="training",
        total=recipe.epochs * sampler.images,
        initial=len(history) * sampler.images,
        unit="img",
        unit_scale=True,
        disable=not progress,
        dynamic_ncols=True,
    ) as bar:
        for epoch in range(len(history), recipe.epochs):
            torch.manual_seed(_seed(recipe.seed, _LAYERS, epoch))  # for networks with dropout
            generator = torch.Generator().manual_seed(_seed(recipe.seed, _AUGMENT, epoch))
            report = loop.train_epoch(epoch, sampler.epoch(epoch), generator, bar.update)
            history.append(report.to_json())
            _save(loop, folder, material, history)
            bar.set_postfix_str(f"epoch {epoch + 1}/{recipe.epochs}, {report.describe()}")
            if on_epoch is not None:
                on_epoch(report)


def _save(loop: TrainingLoop, folder: RunFolder, material: TrainingRows, history: list[dict[str, float]]) -> None:
    """Checkpoint first, metrics after: what the metrics tell is always saved."""
    folder.save_state(
        {
            "samples": material.digest,
            "learner": loop.learner.state_dict(),
            "optimizer": loop.optimizer.state_dict(),
            "history": history,
        }
    )
    folder.save_metrics(history)


def _restore(loop: TrainingLoop, folder: RunFolder, material: TrainingRows) -> list[dict[str, float]]:
    """Put the last checkpoint back, if there is one; returns the metrics of the epochs done."""
    state = folder.load_state()
    if state is None:
        return []
    if state["samples"] != material.digest:
        raise DataError(
            f"{folder.path}: the training rows are not those this run began with;"
            " restore the data, or train into another folder"
        )
    try:
        loop.learner.load_state_dict(state["learner"])
        loop.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{folder.state}: the checkpoint does not fit the network of this version; delete it to start over"
        ) from error
    history: list[dict[str, float]] = list(state["history"])
    folder.save_metrics(history)
    return history


def _seed(seed: int, *part: int) -> int:
    """An independent 63-bit seed for each use of the experiment's one seed."""
    return int(np.random.SeedSequence([seed, *part]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """Use ``threads`` and torch's global generator for a while; both are as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    _keep_freed_memory()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones, where there is a glibc.

    By default it returns large blocks to the system and asks again, every step; the page faults were a third
    of the time of a training step on a CPU.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of the options in malloc.h
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**27)):
            libc.mallopt(option, value)
