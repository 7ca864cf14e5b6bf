"""A whole training: read the data, build the network, run the epochs, measure the domains, save.

The result depends only on the experiment, the data and the number of threads. One seed drives the first weights, the
batches and the augmentation, and each epoch draws from its own part of it. So a run that was interrupted continues from
its last checkpoint to the same numbers, bit for bit on one machine.
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
from reid.training.initial_weights import fill_embedder, load_initial_weights, make_transform, record_initial_weights
from reid.training.loop import EpochReport, Learner, TrainingLoop, make_optimizer
from reid.training.run_folder import RunFolder
from reid.training.training_data import TrainingRows, TrainingSet, load_training_set, read_training_rows

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
    """Train a network in a folder.

    A finished run of the same experiment is left as it is, and an unfinished one continues after its last epoch.

    After the last epoch, the statistics of every normalization domain are measured over its training crops, without
    augmentation, with the final weights. Plain batch normalization keeps its running averages. Unlabelled crops form
    domains like the others; see :attr:`~reid.training.training_data.TrainingRows.domain_names`.

    Args:
        experiment: Decides everything about the training except the data.
        out: The folder of the run.
        resume: Whether an unfinished run continues; else it starts over.
        progress: Whether to draw a bar on stderr.
        on_epoch: Is called after each epoch was saved.

    Returns:
        The file of the final weights.

    Raises:
        ConfigError: The folder holds a run of another experiment, another training is at work in it, or the training
            diverged.
        DataError: The rows cannot be read, or are not those with which the run began.
        WeightsError: The initial weights or the checkpoint cannot be used.
    """
    folder = RunFolder(out)
    with folder.held():
        if not resume:
            folder.clear()
        experiment, rows = read_training_rows(experiment)
        start = load_initial_weights(experiment.network)
        experiment = record_initial_weights(experiment, start)
        folder.open(experiment)
        if folder.weights.exists():
            folder.check_weights()
            folder.read_metrics()
        else:
            _train_network(experiment, rows, start, folder, progress, on_epoch)
    return folder.weights


def _train_network(
    experiment: Experiment,
    rows: TrainingRows,
    start: Checkpoint | None,
    folder: RunFolder,
    progress: bool,
    on_epoch: OnEpoch | None,
) -> None:
    """Train the epochs that are missing, measure the domains and save the weights."""
    norm, transform = experiment.norm, make_transform(experiment, start)
    with torch_settings(experiment.train.threads):
        learner = build_learner(experiment, rows, start)
        data = load_training_set(rows, transform, threads=experiment.train.threads, progress=progress)
        augment = TrainTransform(**experiment.augment.model_dump())
        optimizer = make_optimizer(learner, experiment.train)
        loop = TrainingLoop(learner, optimizer, data, augment, transform, experiment.train, norm.target_loss)
        run_epochs(loop, folder, rows, progress, on_epoch)
        network = final_network(learner.embedder, data, rows, experiment, transform)
    domain_fields = () if SYSTEMS[norm.layers].guesses else rows.domain_fields
    extra = {"experiment": to_toml(experiment), "data": rows.digest}
    spec = learner.embedder.spec
    save_checkpoint(folder.weights, network, spec, transform, domain_fields, rows.domains, extra)


def build_learner(experiment: Experiment, rows: TrainingRows, start: Checkpoint | None = None) -> Learner:
    """Build a new network with converted norms and a classifier; the same one for the same seed.

    Args:
        experiment: The experiment, with its domain fields filled in.
        rows: Give the domains and the number of identities.
        start: Initial weights; all domains begin with their statistics, scale and shift.
    """
    torch.manual_seed(_seed(experiment.train.seed, _INIT))
    parts = experiment.network
    embedder = Embedder(NetworkSpec(parts.backbone, parts.pooling, parts.neck))
    if start is not None:
        fill_embedder(embedder, start)
    network: nn.Module = embedder
    norm = experiment.norm
    if rows.domains or norm.layers != "batch":
        network = convert_norm(network, DomainPolicy(norm.axis, rows.domains, norm.affine, norm.layers))
    learner = Learner(cast(Embedder, network), len(rows.classes[1]))
    return learner.to(memory_format=torch.channels_last)


def final_network(
    embedder: Embedder,
    data: TrainingSet,
    rows: TrainingRows,
    experiment: Experiment,
    transform: EvaluationTransform,
) -> nn.Module:
    """Measure the statistics of every domain again and return the network in evaluation mode.

    After a training in bfloat16, the kernels are first rounded to the nearest float16, which is finer.
    """
    network: nn.Module = embedder.eval()
    if experiment.train.precision == "bfloat16":
        round_kernels(network)
    if data.domains is not None:
        batches = _calibration_batches(data.domains, experiment, mixes_domains(network))
        images = ((transform.normalise(data.crops[numbers]), domain) for numbers, domain in batches)
        network = install(network, calibrate(network, images, rows.domains, domain_fields=rows.domain_fields))
    return network.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def round_kernels(network: nn.Module) -> None:
    """Round the trained weights of convolutions and linear layers to float16, in place: the file is half as large."""
    for module in network.modules():
        if isinstance(module, _ConvNd | nn.Linear) and module.weight.requires_grad:
            module.weight.copy_(module.weight.half())


def _calibration_batches(domains: Tensor, experiment: Experiment, mixed: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the row numbers and domains (B,) of batches that hold one domain each, its images in random order.

    Where domains share statistics (``mixed``), every batch holds all of them, as in training.
    """
    generator = torch.Generator().manual_seed(_seed(experiment.train.seed, _CALIBRATE))
    chosen = []
    for domain in range(int(domains.max()) + 1):
        numbers = torch.nonzero(domains == domain)[:, 0]
        chosen.append(numbers[torch.randperm(len(numbers), generator=generator)])
    if mixed:
        together = torch.cat(chosen)
        chosen = [together[torch.randperm(len(together), generator=generator)]]
    for numbers in chosen:
        for part in torch.tensor_split(numbers, -(-len(numbers) // CALIBRATION_BATCH)):  # of nearly equal size
            yield part, domains[part]


def run_epochs(
    loop: TrainingLoop, folder: RunFolder, rows: TrainingRows, progress: bool, on_epoch: OnEpoch | None
) -> None:
    """Train from the last checkpoint, or from the beginning, to the last epoch; save after each epoch."""
    recipe = loop.recipe
    history = _restore(loop, folder, rows)
    sampler = BatchSampler(rows.samples, rows.unlabelled, recipe, loop.objective.views)
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
            _save(loop, folder, rows, history)
            bar.set_postfix_str(f"epoch {epoch + 1}/{recipe.epochs}, {report.describe()}")
            if on_epoch is not None:
                on_epoch(report)


def _save(loop: TrainingLoop, folder: RunFolder, rows: TrainingRows, history: list[dict[str, float]]) -> None:
    """Save the checkpoint first and the metrics after it, so that the metrics never describe an unsaved epoch."""
    folder.save_state(
        {
            "samples": rows.digest,
            "learner": loop.learner.state_dict(),
            "optimizer": loop.optimizer.state_dict(),
            "history": history,
        }
    )
    folder.save_metrics(history)


def _restore(loop: TrainingLoop, folder: RunFolder, rows: TrainingRows) -> list[dict[str, float]]:
    """Load the last checkpoint into the loop, if there is one, and return the metrics of the epochs so far."""
    state = folder.load_state()
    if state is None:
        return []
    if state["samples"] != rows.digest:
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
    """Derive an independent 63-bit seed for each use of the experiment's one seed."""
    return int(np.random.SeedSequence([seed, *part]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """Use a number of threads and torch's global generator during the ``with`` block; restore both afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    _keep_freed_memory()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Make glibc, where there is one, keep the memory of freed tensors for the next ones.

    By default it returns large blocks to the system and asks for them again at every step. The page faults were a third
    of the time of a training step on a CPU.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of the options in malloc.h
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**27)):
            libc.mallopt(option, value)
