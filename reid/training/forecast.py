"""What a training will need: memory, and time for an epoch, measured with a few batches of its own network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from reid.config import Experiment
from reid.data.transforms import TrainTransform
from reid.models.checkpoint import Checkpoint
from reid.training.batches import BatchSampler
from reid.training.crop_cache import crop_bytes
from reid.training.initial_weights import make_transform
from reid.training.loop import TrainingLoop, make_optimizer
from reid.training.processes import ONE_PROCESS
from reid.training.training_data import TrainingRows, TrainingSet
from reid.training.training_run import build_learner, torch_settings, training_device

Value = TypeVar("Value", str, int)

MEASURED_IMAGES = 16  # of a batch, at least two identities
COPIES = 4  # of each parameter: weights, gradients and the two averages of AdamW
PROGRAM = 500 * 2**20  # bytes of the program itself, with PyTorch; about


@dataclass(frozen=True)
class Speed:
    """What a few batches cost.

    Attributes:
        images_per_second: Forward and backward pass and update, with augmentation.
        bytes_per_image: What the backward pass needs to remember of an image.
        parameters: The number of parameters.
    """

    images_per_second: float
    bytes_per_image: float
    parameters: int


@dataclass(frozen=True)
class Forecast:
    """What a training will need on this machine.

    Attributes:
        images: The number of images of an epoch.
        epochs: The number of epochs.
        seconds_per_epoch: How long an epoch takes.
        memory: Bytes of memory, without crops that are kept in a file.
        crops: Bytes of the decoded crops.
    """

    images: int
    epochs: int
    seconds_per_epoch: float
    memory: float
    crops: int

    def lines(self) -> tuple[str, ...]:
        """Describe the forecast in sentences.

        Example:
            >>> Forecast(1000, 30, 20.0, 2**30, 2**28).lines()
            ('an epoch of 1000 images takes about 20 s on this machine, all 30 about 10 min', 'memory about 1.2 GiB')
        """
        total = self.seconds_per_epoch * self.epochs
        return (
            f"an epoch of {self.images} images takes about {_duration(self.seconds_per_epoch)} on this machine, all"
            f" {self.epochs} about {_duration(total)}",
            f"memory about {(self.memory + self.crops) / 2**30:.1f} GiB",
        )


def forecast(experiment: Experiment, rows: TrainingRows, start: Checkpoint | None, seconds: float) -> Forecast:
    """Measure a few batches and compute what the whole training needs.

    Args:
        experiment: The experiment, with its domain fields filled in.
        rows: The rows to learn from.
        start: The initial weights.
        seconds: About how long to measure; at least one batch is measured after one to warm up.
    """
    recipe, transform = experiment.train, make_transform(experiment, start)
    speed = measure_speed(experiment, rows, start, seconds)
    images = BatchSampler(rows.samples, rows.unlabelled, recipe, 1).images
    batch = recipe.identities_per_batch * recipe.images_per_identity * (2 if rows.unlabelled else 1)
    return Forecast(
        images=images,
        epochs=recipe.epochs,
        seconds_per_epoch=images / speed.images_per_second,
        memory=PROGRAM + COPIES * 4 * speed.parameters + batch * speed.bytes_per_image,
        crops=crop_bytes(len(rows.all_samples), transform),
    )


def choose_precision(
    experiment: Experiment, rows: TrainingRows, start: Checkpoint | None, seconds: float
) -> tuple[Experiment, dict[str, float]]:
    """Choose the faster of float32 and bfloat16 on this machine.

    Args:
        experiment: The experiment, with its domain fields filled in.
        rows: The rows to learn from.
        start: The initial weights.
        seconds: About how long to measure, both together.

    Returns:
        The experiment with the faster precision, and the images per second of each.
    """
    return _fastest(experiment, rows, start, seconds, "precision", ("float32", "bfloat16"))


def choose_threads(
    experiment: Experiment, rows: TrainingRows, start: Checkpoint | None, seconds: float
) -> tuple[Experiment, dict[int, float]]:
    """Choose between the threads of an experiment and one thread.

    Where other programs use the processors too, several threads wait for each other and are slower than one, which may
    be many times faster then.

    Args:
        experiment: The experiment, with its domain fields filled in.
        rows: The rows to learn from.
        start: The initial weights.
        seconds: About how long to measure, both together.

    Returns:
        The experiment with the faster number of threads, and the images per second of each.
    """
    return _fastest(experiment, rows, start, seconds, "threads", tuple({experiment.train.threads, 1}))


def _fastest(
    experiment: Experiment,
    rows: TrainingRows,
    start: Checkpoint | None,
    seconds: float,
    key: str,
    values: Sequence[Value],
) -> tuple[Experiment, dict[Value, float]]:
    """Return the experiment with the fastest of two values of ``train``, and the images per second of each."""
    found = dict[Value, float]()
    for value in values:
        tried = _with_recipe(experiment, **{key: value})
        found[value] = measure_speed(tried, rows, start, seconds / 2).images_per_second
    return _with_recipe(experiment, **{key: max(found, key=lambda value: found[value])}), found


def measure_speed(experiment: Experiment, rows: TrainingRows, start: Checkpoint | None, seconds: float) -> Speed:
    """Train on a few batches of random crops, and throw the network away.

    Args:
        experiment: The experiment, with its domain fields filled in.
        rows: Give the domains and the number of identities.
        start: The initial weights.
        seconds: About how long to measure.
    """
    per_identity = experiment.train.images_per_identity
    identities = min(experiment.train.identities_per_batch, max(2, MEASURED_IMAGES // per_identity))
    still = {"warmup_epochs": 0.0, "learning_rate": 1e-8}  # noise must not make the loss infinite
    recipe = experiment.train.model_copy(update={"identities_per_batch": identities, **still})
    transform = make_transform(experiment, start)
    with torch_settings(recipe.threads):
        learner = build_learner(experiment, rows, start).to(training_device(recipe, ONE_PROCESS))
        data = _random_crops(identities * per_identity, per_identity, rows, transform.height, transform.width)
        augment = TrainTransform(**experiment.augment.model_dump())
        loop = TrainingLoop(learner, make_optimizer(learner, recipe), data, augment, transform, recipe)
        batch = torch.arange(len(data.crops)).numpy()
        generator = torch.Generator().manual_seed(0)
        with _saved_bytes() as saved:
            loop.train_epoch(0, [batch], generator)
        started, images = time.perf_counter(), 0
        while not images or time.perf_counter() - started < seconds:
            images += len(batch)
            loop.train_epoch(0, [batch], generator)
        passed = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in learner.parameters())
    return Speed(images / passed, max(0.0, saved[0] - 4 * parameters) / len(batch), parameters)


def _random_crops(count: int, per_identity: int, rows: TrainingRows, height: int, width: int) -> TrainingSet:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(count)
    return TrainingSet(
        crops=torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8),
        targets=numbers // per_identity,
        modalities=torch.zeros(count, dtype=torch.int64),
        domains=numbers % len(rows.domains) if rows.domain_fields else None,
    )


@contextmanager
def _saved_bytes() -> Iterator[list[float]]:
    """Count, during the ``with`` block, the bytes that the backward pass remembers; each memory counts once."""
    found, known = [0.0], set[int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            found[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def _with_recipe(experiment: Experiment, **changes: object) -> Experiment:
    return experiment.model_copy(update={"train": experiment.train.model_copy(update=changes)})


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
