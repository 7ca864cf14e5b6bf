"""Choose an experiment for somebody's own data: size, batches, epochs, losses and what the training starts from.

The values follow from trials on real vehicles, drawn characters and the synthetic street; docs/training.md has them.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from reid.config import Experiment, parse_config
from reid.errors import ConfigError, DataError
from reid.records import Sample

BATCH = 64  # images
HELD_OUT, LEAST_HELD_OUT = (
    0.1,
    10,
)  # the fraction of the identities that measure epochs, and how many these are at least
MIN_IDENTITIES = 40  # of the smallest category, so that some are held out
FINE_TUNING_EPOCHS, SCRATCH_EPOCHS = 30, 60
MEASUREMENTS = 15  # of a training, on the held-out identities
PATIENCE = 5
AREA = 128 * 96  # pixels of an image, where the weights ask for no size of their own
STEP = 16  # sides are multiples of it
SHOWN_IMAGES = 64  # whose size is looked at
LARGEST_THREADS = 8
GENERIC_SIZE = (224, 224)  # of weights trained on ImageNet, which says nothing about crops


@dataclass(frozen=True)
class Start:
    """The weights that a training starts from.

    Attributes:
        weights: The file; "" starts from random numbers.
        backbone: The network.
        pooling: Its pooling.
        neck: Its neck.
        size: Height and width in pixels that it takes.
    """

    weights: str = ""
    backbone: str = "osnet_x0_25"
    pooling: str = "average"
    neck: str = "bnneck"
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class DataSummary:
    """What the choice depends on.

    Attributes:
        images: The number of training images of identities with two images or more.
        identities: The number of these identities.
        fewest: The number of identities of the smallest category.
        images_per_identity: The median number of images of an identity.
        height: The median height of the images in pixels.
        width: The median width of the images in pixels.
        modalities: The number of modalities.
    """

    images: int
    identities: int
    fewest: int
    images_per_identity: float
    height: float
    width: float
    modalities: int


def summarize(samples: Sequence[Sample]) -> DataSummary:
    """Count what the choice depends on.

    Args:
        samples: The rows of split train, at least one.

    Raises:
        DataError: Fewer than two identities have two images, or no image can be read.
    """
    counts = {key: n for key, n in Counter((s.category, s.identity) for s in samples).items() if n > 1 and key[1]}
    by_category = Counter(category for category, _ in counts)
    if not counts or min(by_category.values()) < 2:
        raise DataError(
            f"{len(counts)} identities of split train have two images or more; learning to match needs at least two in"
            " each category: add images, or name other categories with --set data.categories"
        )
    heights, widths = zip(*map(_size_of, samples[:: max(1, len(samples) // SHOWN_IMAGES)]), strict=True)
    return DataSummary(
        images=sum(counts.values()),
        identities=len(counts),
        fewest=min(by_category.values()),
        images_per_identity=median(counts.values()),
        height=median(heights),
        width=median(widths),
        modalities=len({sample.modality for sample in samples}),
    )


def choose_experiment(manifests: Sequence[str], data: DataSummary, start: Start) -> Experiment:
    """Choose an experiment.

    Args:
        manifests: The manifests to train on.
        data: What is in them.
        start: What the training starts from.

    Returns:
        An experiment with every key that the choice sets; precision float32.

    Example:
        >>> data = DataSummary(1213, 179, 179, 5, 300, 400, 1)
        >>> chosen = choose_experiment(["m.csv"], data, Start("imagenet.pth", "mobilenet_v2", size=(224, 224)))
        >>> chosen.data.size, chosen.train.epochs, chosen.train.identities_per_batch, chosen.network.pooling
        ((96, 128), 30, 16, 'gem')
    """
    fine_tuning = bool(start.weights)
    held_out = max(HELD_OUT, round(LEAST_HELD_OUT / data.fewest, 3)) if data.fewest >= MIN_IDENTITIES else 0.0
    left = data.fewest - max(2, round(held_out * data.fewest)) if held_out else data.fewest
    per_identity = int(min(4, max(2, data.images_per_identity)))
    identities = max(2, min(BATCH // per_identity, left))
    epochs = FINE_TUNING_EPOCHS if fine_tuning else SCRATCH_EPOCHS
    recipe = {
        "epochs": epochs,
        "identities_per_batch": identities,
        "images_per_identity": per_identity,
        "visits": max(1, round(data.images / data.identities / per_identity)),
        "balance": "modality" if data.modalities > 1 else "camera",
        "learning_rate": 3.5e-4 if fine_tuning else 2e-3,
        "warmup_epochs": 1.0 if fine_tuning else 2.0,
        "triplet_weight": 0.0,
        "contrast_weight": 1.0,
        "positives": "cross_modality" if data.modalities > 1 else "all",
        "threads": min(LARGEST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1),
    }
    if held_out:
        recipe |= {"validate_every": max(1, epochs // MEASUREMENTS), "keep": "best", "patience": PATIENCE}
    table = {
        "data": {"manifests": list(manifests), "size": list(choose_size(data, start)), "held_out": held_out},
        "network": {"backbone": start.backbone, "weights": start.weights, "pooling": "gem", "neck": start.neck},
        "train": recipe,
    }
    return parse_config(table, "the chosen experiment")


def choose_size(data: DataSummary, start: Start) -> tuple[int, int]:
    """Choose the height and the width of images: those of the weights, or of about 12,000 pixels in the shape of crops.

    Weights of ImageNet name a square that says nothing about crops, so they do not count.

    Example:
        >>> choose_size(DataSummary(100, 50, 50, 2, 300, 100, 1), Start())
        (192, 64)
    """
    if start.size is not None and start.size != GENERIC_SIZE:
        return start.size
    area = min(AREA, 2 * data.height * data.width)  # small crops gain nothing from more pixels
    aspect = min(4.0, max(0.25, data.height / data.width))
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    height, width = (max(2 * STEP, STEP * round(side / STEP)) for side in sides)
    return height, width


def reasons(data: DataSummary, experiment: Experiment) -> tuple[str, ...]:
    """Say in sentences what the choice rests on."""
    recipe, height, width = experiment.train, *experiment.data.size
    begins = f"fine-tuning {experiment.network.weights}" if experiment.network.weights else "from random weights"
    held_out = (
        f"{experiment.data.held_out:.0%} of the identities are held out; they are measured every"
        f" {recipe.validate_every} epochs, and the best epoch is kept"
        if recipe.validate_every
        else f"no identities are held out, because there are fewer than {MIN_IDENTITIES}; the last epoch is kept"
    )
    return (
        f"{data.images} images of {data.identities} identities, {data.images_per_identity:g} of one in the median,"
        f" {data.height:g}x{data.width:g} pixels",
        f"{begins}, at {height}x{width}, with GeM pooling and the contrastive loss beside the cross-entropy",
        f"batches of {recipe.identities_per_batch} identities with {recipe.images_per_identity} images; an epoch shows"
        " each image about once",
        held_out,
    )


def manifest_files(sources: Sequence[str]) -> tuple[str, ...]:
    """Return the manifests that sources name: files, or folders that hold ``manifest.csv``.

    Raises:
        ConfigError: A source is neither.
    """
    found = []
    for source in sources:
        path = Path(source) / "manifest.csv" if Path(source).is_dir() else Path(source)
        if not path.is_file():
            raise ConfigError(
                f"{source}: no manifest and no folder with manifest.csv; make one of a folder of images with reid init"
            )
        found.append(str(path))
    return tuple(found)


def _size_of(sample: Sample) -> tuple[int, int]:
    """Return height and width of an image; only its header is read."""
    try:
        with Image.open(sample.path) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{sample.path}: cannot be read as an image ({error})") from error
