"""Train a restyler with the machinery of every training: recipe, batches, loop, checkpoints and resume.

A batch holds crops of several cameras, and each crop is restyled to the camera of another crop of the batch. In the
place of identities, the batches of the machinery are spread over cameras, so no identity is needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from reid.config import Augment, Experiment, Train, parse_config, to_toml
from reid.data.transforms import EvaluationTransform, TrainTransform
from reid.errors import ConfigError, DataError
from reid.generation.camera_style import CameraStyle
from reid.generation.restyle_plan import style_name
from reid.generation.restyler import Restyler, load_restyler, measure_maps
from reid.generation.restyling_network import RestylingNetwork, stem_of
from reid.models.checkpoint import Checkpoint
from reid.norm.specialised.style import instance_norm
from reid.norm.statistics import moments
from reid.records import Sample
from reid.structured_text import read_json
from reid.training.batches import TrainingBatch
from reid.training.crop_cache import CropSource
from reid.training.epochs import INIT, derive_seed, run_epochs
from reid.training.loop import Learner, TrainingLoop, make_optimizer
from reid.training.objective import Objective, total_loss
from reid.training.run_folder import RunFolder, replace_file
from reid.training.training_data import TrainingRows, TrainingSet, read_training_set
from reid.training.training_run import torch_settings

# The losses are in units of the style's deviations or of normalized pixels, so they are of similar size.
WEIGHTS = {"reconstruction": 2.0, "consistency": 1.0, "content": 1.0, "style": 1.0}
PLAIN = Augment(flip=0.5, pad=0, brightness=0.0, contrast=0.0, saturation=0.0, gain=0.0, grey=0.0, erase=0.0)
ORIGIN_FILE = "restyler.json"  # in the run folder: the method and the network that the stem is from
FEWEST = 2  # crops of a camera


@dataclass(frozen=True)
class RestyleRecipe:
    """How a restyler is trained.

    Attributes:
        method: A name of :data:`~reid.generation.restyling_network.CHANGES`.
        epochs: The number of epochs, of about 20 batches each.
        seed: Decides the first weights, the batches and the targets.
        threads: Threads of torch; the last bits depend on it.
    """

    method: str
    epochs: int = 10
    seed: int = 0
    threads: int = 1


def train_restyler(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    recipe: RestyleRecipe,
    out: Path,
    *,
    sources: Sequence[str] = ("crops",),
    progress: bool = False,
) -> Restyler:
    """Train a restyler in a folder; an interrupted training continues, and a finished one is only read.

    Args:
        checkpoint: The frozen network whose stem is used.
        samples: Crops of at least two cameras; no identity is read.
        recipe: How to train.
        out: The folder of the run.
        sources: The names of the data, for the record.
        progress: Whether to draw bars on stderr.

    Returns:
        The restyler, which knows the styles of all cameras of the samples.

    Raises:
        DataError: A category has crops of one camera only, or a camera has a single crop.
        ConfigError: The folder holds another run.
        WeightsError: The network does not begin with a convolution, or the file of a finished run is damaged.
    """
    rows = TrainingRows(camera_classes(samples), ())
    experiment = _make_experiment(checkpoint, rows, recipe, sources)
    folder = RunFolder(out)
    with folder.held():
        folder.open(experiment)
        _check_origin(folder, {"method": recipe.method, "weights": checkpoint.fingerprint})
        if not folder.weights.exists():
            _train(checkpoint, rows, recipe, experiment, folder, progress)
    return load_restyler(folder.weights)


def camera_classes(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Put the light and the camera of each sample in the place of its identity, for samples that can be restyled.

    Raises:
        DataError: A category has crops of one camera only, or a camera has a single crop.
    """
    usable = [sample for sample in samples if sample.camera and not sample.generated]
    counts = Counter(style_name(sample) for sample in usable)
    styles: dict[str, set[str]] = {}
    for sample in usable:
        styles.setdefault(sample.category, set()).add(style_name(sample))
    kept = [sample for sample in usable if len(styles[sample.category]) > 1]
    if not kept:
        raise DataError("restyling needs crops of at least two cameras of one category; fill in the column camera")
    for sample in kept:
        if counts[style_name(sample)] < FEWEST:
            raise DataError(f"{style_name(sample)}: {counts[style_name(sample)]} crop; a style needs {FEWEST} or more")
    return tuple(replace(sample, identity=f"{sample.modality}/{sample.camera}") for sample in kept)


def _make_experiment(
    checkpoint: Checkpoint, rows: TrainingRows, recipe: RestyleRecipe, sources: Sequence[str]
) -> Experiment:
    names = rows.classes[1]
    cameras = min(sum(category == own for category, _ in names) for own, _ in names)
    transform, source = checkpoint.transform, f"{checkpoint.source}#{checkpoint.fingerprint}"
    return parse_config(
        {
            "data": {"manifests": list(sources), "size": [transform.height, transform.width]},
            "network": {"backbone": checkpoint.spec.backbone, "weights": source},
            "train": {
                "seed": recipe.seed,
                "epochs": recipe.epochs,
                "identities_per_batch": min(cameras, 8),
                "images_per_identity": 4,
                "visits": -(-20 * min(cameras, 8) // len(names)),
                "balance": "camera",
                "learning_rate": 3e-3,
                "warmup_epochs": 1.0,
                "gradient_clip": 1.0,
                "threads": recipe.threads,
            },
            "augment": PLAIN.model_dump(),
        },
        "restyle",
    )


def _check_origin(folder: RunFolder, wanted: dict[str, str]) -> None:
    """Record what is trained; ConfigError if the folder holds the run of another method."""
    path = folder.path / ORIGIN_FILE
    if not path.exists() or not folder.has_results:
        replace_file(path, lambda part: part.write_text(json.dumps(wanted), encoding="utf-8"))
    try:
        began = read_json(path)
    except ValueError as error:
        raise ConfigError(f"{path}: damaged; delete the folder to train again") from error
    if began != wanted:
        raise ConfigError(f"{folder.path} holds another restyler ({began}); choose another folder, or delete it")


def _train(
    checkpoint: Checkpoint,
    rows: TrainingRows,
    recipe: RestyleRecipe,
    experiment: Experiment,
    folder: RunFolder,
    progress: bool,
) -> None:
    with torch_settings(recipe.threads):
        data = read_training_set(rows, CropSource(checkpoint.transform, recipe.threads, progress))
        torch.manual_seed(derive_seed(recipe.seed, INIT))
        stem = stem_of(checkpoint.network, checkpoint.source)
        network = RestylingNetwork(stem, recipe.method, len(rows.classes[1]))
        network.set_styles(list(_measured(network, data, checkpoint.transform)))
        loop = StyleLoop(network, data, checkpoint.transform, experiment.train)
        run_epochs(loop, folder, rows, progress, None)
    names = tuple(f"{category}/{camera}" for category, camera in rows.classes[1])
    extra = {"experiment": to_toml(experiment), "data": rows.digest}
    Restyler(network.eval(), recipe.method, names, checkpoint.transform, extra).save(folder.weights)


def _measured(network: RestylingNetwork, data: TrainingSet, transform: EvaluationTransform) -> Iterator[CameraStyle]:
    for number in range(int(data.targets.max()) + 1):
        yield measure_maps(network, data.crops[data.targets == number], transform)


class StyleObjective(Objective):
    """The losses of a restyler, with constant weights."""

    def __init__(self) -> None:
        self.views = 1
        self._layer_objectives = {}
        self._weights = dict(WEIGHTS)

    def prepare(self, views: object) -> None:
        """Measure nothing."""


class StyleLoop(TrainingLoop):
    """The training loop with the step of a restyler.

    Args:
        network: The restyling network, with measured styles.
        data: Crops, whose targets are their cameras.
        transform: The image preparation.
        recipe: Rates and batches.
    """

    def __init__(
        self, network: RestylingNetwork, data: TrainingSet, transform: EvaluationTransform, recipe: Train
    ) -> None:
        augment = TrainTransform(**PLAIN.model_dump())
        super().__init__(cast(Learner, network), make_optimizer(network, recipe), data, augment, transform, recipe)
        self.network = network
        self.objective = StyleObjective()

    def _step(self, batch: TrainingBatch, weights: dict[str, float], epoch: int) -> dict[str, float]:
        """Restyle every crop to the camera of another one, and make one update; "accuracy" is explained below.

        The accuracy is the share of restyled crops whose nearest style, among all cameras, is that of their target.
        """
        style = batch.targets[torch.randperm(len(batch.targets))]
        terms, hits = restyling_terms(self.network, batch.images, style)
        loss = total_loss(terms, weights)
        self._update(loss, epoch)
        losses = {f"{name}_loss": term.item() for name, term in terms.items()}
        return {**losses, "loss": loss.item(), "accuracy": hits.float().mean().item()}


def restyling_terms(network: RestylingNetwork, images: Tensor, style: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Compute the losses of a restyling network for a batch.

    - reconstruction: how far an image is from the image decoded from its own maps (mean absolute difference);
    - consistency: how far the maps of a restyled image are from the maps that it was decoded from;
    - content: how far its maps are from those of the image before, after instance normalization of both;
    - style: how far the moments of its maps are from those of the target (Huang & Belongie 2017, equation 13).

    Args:
        network: The restyling network.
        images: Normalized images (B, 3, H, W).
        style: The index of the target camera (B,) int64 of each image.

    Returns:
        The losses by name, and whether the target is the nearest style of each restyled image, (B,) bool.
    """
    known = network.known
    maps = network.encode(images)
    restyled, changed = network(images, style)
    found = network.encode(restyled)
    means, deviations = known.mean.to(found.dtype), known.deviation().to(found.dtype).clamp_min(1e-6)
    mean, var = moments(found)
    deviation = (var + 1e-8).sqrt()
    distances = _distances(mean, deviation, means, deviations)  # (B, K)
    unit = deviations[style][:, :, None, None]
    terms = {
        "reconstruction": functional.l1_loss(network.decode(maps, (images.shape[2], images.shape[3])), images),
        "consistency": ((found - changed.detach()) / unit).square().mean(),
        "content": functional.mse_loss(instance_norm(found), instance_norm(maps)),
        "style": distances.gather(1, style[:, None]).mean(),
    }
    return terms, distances.argmin(1) == style


def _distances(mean: Tensor, deviation: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """Compute the distance (B, K) of the moments of B images to K styles, as ``style_distance`` does."""
    shift = ((mean[:, None] - means) / deviations).square()
    spread = ((deviation[:, None] - deviations) / deviations).square()
    return (shift + spread).mean(2)
