"""A whole training: read the data, build the network, run the epochs, measure the domains, save.

The result depends only on the experiment, the data and the number of threads. One seed drives the first weights, the
batches and the augmentation, and each epoch draws from its own part of it. So a run that was interrupted continues from
its last checkpoint to the same numbers, bit for bit on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reid.config import Experiment, Train, to_toml
from reid.data.transforms import EvaluationTransform, TrainTransform
from reid.errors import ConfigError
from reid.models.checkpoint import Checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.execution import Execution, find_device
from reid.models.freed_memory import keep_freed_memory
from reid.norm import SYSTEMS, DomainPolicy, calibrate, convert_norm, install, mixes_domains
from reid.norm.convert import take_rows
from reid.records import Sample
from reid.robustness.gate_alarm import ALARM, measure_on_crops
from reid.training.crop_cache import CropSource, cached_if_large, remove_crops
from reid.training.epochs import CALIBRATE, INIT, OnEpoch, derive_seed, run_epochs
from reid.training.held_out import HeldOutSet, load_held_out
from reid.training.initial_weights import fill_embedder, load_initial_weights, make_transform, record_initial_weights
from reid.training.loop import Learner, TrainingLoop, make_optimizer
from reid.training.processes import ONE_PROCESS, Processes, check_same_rows
from reid.training.row_choice import choose_rows
from reid.training.run_folder import RunFolder
from reid.training.synchronized_norms import synchronized_norms
from reid.training.training_data import LEARNED, TrainingRows, TrainingSet, read_training_rows, read_training_set

Say = Callable[[str], object]
CALIBRATION_BATCH = 128


@dataclass(frozen=True)
class _Work:
    """One training: what it reads, where it writes, and how it is watched."""

    experiment: Experiment
    rows: TrainingRows
    held_out: Sequence[Sample]
    start: Checkpoint | None
    folder: RunFolder
    source: CropSource
    processes: Processes
    on_epoch: OnEpoch | None


def train(
    experiment: Experiment,
    out: Path,
    *,
    resume: bool = True,
    progress: bool = False,
    on_epoch: OnEpoch | None = None,
    cache: Path | None = None,
    processes: Processes = ONE_PROCESS,
    say: Say | None = None,
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
        cache: Where decoded crops are kept. None keeps them in memory, or in the folder of the run where they would
            take more than half of the free memory.
        processes: The processes that share every batch, see :func:`~reid.training.processes.joined_processes`. Each of
            them calls this function; process 0 writes.
        say: Is called with sentences about rows that are left out.

    Returns:
        The file of the final weights.

    Raises:
        ConfigError: The folder holds a run of another experiment, another training is at work in it, or the training
            diverged.
        DataError: The rows cannot be read, or are not those with which the run began.
        WeightsError: The initial weights or the checkpoint cannot be used.
    """
    folder = RunFolder(out)
    with folder.held() if processes.is_writer else nullcontext():
        if not resume and processes.is_writer:
            folder.clear()
        experiment, rows = read_training_rows(experiment)
        rows, held_out, notes = choose_rows(rows, experiment)
        if say is not None and processes.is_writer:
            for note in notes:
                say(note)
        start = load_initial_weights(experiment.network)
        experiment = record_initial_weights(experiment, start)
        if processes.is_writer:
            folder.open(experiment)
        check_same_rows(processes, rows.digest)
        if processes.broadcast(folder.weights.exists()):
            if processes.is_writer:
                folder.check_weights()
                folder.read_metrics()
            return folder.weights
        transform = make_transform(experiment, start)
        device = training_device(experiment.train, processes)
        if say is not None and processes.is_writer and device != "cpu":
            say(f"training on {device} in {experiment.train.precision}")
        source = CropSource(transform, experiment.train.threads, progress, cache)
        source = processes.broadcast(cached_if_large(source, len(rows.all_samples), folder.path))
        if source.folder == folder.path and say is not None and processes.is_writer:
            say(f"the crops would take more than half of the free memory, so they are decoded into {folder.path}")
        _train_network(_Work(experiment, rows, held_out, start, folder, source, processes, on_epoch))
    return folder.weights


def _train_network(work: _Work) -> None:
    """Train the epochs that are missing, measure the domains and save the weights."""
    experiment, rows, processes, transform = work.experiment, work.rows, work.processes, work.source.transform
    norm, recipe = experiment.norm, experiment.train
    device = training_device(recipe, processes)
    with torch_settings(recipe.threads):
        learner = build_learner(experiment, rows, work.start).to(device)
        data, held_out = _read_crops(work)
        augment = TrainTransform(**experiment.augment.model_dump())
        with synchronized_norms(learner) if processes.count > 1 else nullcontext():
            optimizer = make_optimizer(learner, recipe)
            loop = TrainingLoop(
                learner,
                optimizer,
                data,
                augment,
                transform,
                recipe,
                norm.target_loss,
                processes,
                experiment.defence,
            )
            run_epochs(loop, work.folder, rows, work.source.progress, work.on_epoch, held_out)
        if not processes.is_writer:
            return
        network = final_network(learner.embedder, data, rows, experiment, transform)
        alarm = {ALARM: measure_on_crops(network, data.crops, transform).text()} if rows.attacks else {}
    domain_fields = () if SYSTEMS[norm.layers].guesses else rows.domain_fields
    extra = {"experiment": to_toml(experiment), "data": rows.digest, **alarm}
    spec = learner.embedder.spec
    save_checkpoint(work.folder.weights, network, spec, transform, domain_fields, rows.domains, extra)
    if work.source.folder == work.folder.path:  # which the user did not ask for
        remove_crops(work.folder.path)


def _read_crops(work: _Work) -> tuple[TrainingSet, HeldOutSet | None]:
    """Read the crops to learn from and the held-out ones; process 0 decodes into a cache before the others read it."""
    if work.source.folder is not None and not work.processes.is_writer:
        work.processes.collect(None)
    data = read_training_set(work.rows, work.source)
    held_out = load_held_out(work.held_out, work.rows, work.source)
    if work.source.folder is not None and work.processes.is_writer:
        work.processes.collect(None)
    return data, held_out


def training_device(recipe: Train, processes: Processes) -> str:
    """Return where a training runs: ``train.device``, or the best device there is.  Several processes share the CPU.

    Raises:
        ConfigError: The device is not there, does not compute in ``train.precision``, or is a GPU for several
            processes.
    """
    if processes.count > 1:
        if recipe.device not in ("auto", "cpu"):
            raise ConfigError(f"train.device = {recipe.device}: several processes train on the CPU; start one process")
        return find_device(Execution("cpu", recipe.precision)).device
    return find_device(Execution(recipe.device, recipe.precision)).device


def build_learner(experiment: Experiment, rows: TrainingRows, start: Checkpoint | None = None) -> Learner:
    """Build a new network with converted norms and a classifier; the same one for the same seed.

    Args:
        experiment: The experiment, with its domain fields filled in.
        rows: Give the domains and the number of identities.
        start: Initial weights; all domains begin with their statistics, scale and shift.
    """
    torch.manual_seed(derive_seed(experiment.train.seed, INIT))
    parts = experiment.network
    channels = start.spec.channels if start is not None else ()  # those of a network that was pruned
    embedder = Embedder(NetworkSpec(parts.backbone, parts.pooling, parts.neck, channels))
    if start is not None:
        fill_embedder(embedder, start)
    network: nn.Module = embedder
    norm = experiment.norm
    if rows.domains or norm.layers != "batch":
        network = convert_norm(network, DomainPolicy(norm.axis, rows.training_domains, norm.affine, norm.layers))
    learner = Learner(cast(Embedder, network), len(rows.classes[1]), experiment.train.second_view == LEARNED)
    return learner.to(memory_format=torch.channels_last)


def final_network(
    embedder: Embedder,
    data: TrainingSet,
    rows: TrainingRows,
    experiment: Experiment,
    transform: EvaluationTransform,
) -> nn.Module:
    """Measure the statistics of every domain again and return the network in evaluation mode.

    After a training in bfloat16 or float16, the kernels are first rounded to the nearest float16, which is finer.
    """
    network: nn.Module = embedder.eval()
    if experiment.train.precision != "float32":
        round_kernels(network)
    if data.domains is not None:
        if rows.grey_domains:
            network = take_rows(network, rows.domains, list(range(len(rows.domains))))
        batches = _calibration_batches(_recorded_domains(data), experiment, mixes_domains(network))
        images = ((transform.normalise(data.crops[numbers]), domain) for numbers, domain in batches)
        network = install(network, calibrate(network, images, rows.domains, domain_fields=rows.domain_fields))
    return network.to("cpu").to(memory_format=torch.contiguous_format)


@torch.no_grad()
def round_kernels(network: nn.Module) -> None:
    """Round the trained weights of convolutions and linear layers to float16, in place: the file is half as large."""
    for module in network.modules():
        if isinstance(module, _ConvNd | nn.Linear) and module.weight.requires_grad:
            module.weight.copy_(module.weight.half())


def _recorded_domains(data: TrainingSet) -> Tensor:
    """Return the domain (N,) of each crop, -1 for generated crops of domains with at least two recorded ones.

    Statistics of a camera are measured on crops that it took, where the training has some.
    """
    if data.domains is None or data.recorded is None:
        return cast(Tensor, data.domains)
    counts = torch.bincount(data.domains[data.recorded], minlength=int(data.domains.max()) + 1)
    left_out = ~data.recorded & (counts[data.domains] >= 2)
    return torch.where(left_out, -1, data.domains)


def _calibration_batches(domains: Tensor, experiment: Experiment, mixed: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the row numbers and domains (B,) of batches that hold one domain each, its images in random order.

    Where domains share statistics (``mixed``), every batch holds all of them, as in training.
    """
    generator = torch.Generator().manual_seed(derive_seed(experiment.train.seed, CALIBRATE))
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


@contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """Use a number of threads and torch's global generator during the ``with`` block; restore both afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)
