"""Ask of every stage of a network what a linear function can read from it: the camera of a crop, and its identity.

A network that does not see the camera has camera probes near chance.  One that has thrown the identity away with it is
no better for that, so both are asked (linear probes: Alain and Bengio, "Understanding intermediate layers using linear
classifier probes", 2016).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from reid.data.loading import Progress, load_batches
from reid.errors import ConfigError, DataError
from reid.evaluation.labels import BoolArray
from reid.models.checkpoint import Checkpoint
from reid.models.networks.resnet_changes import InstanceBatchNorm
from reid.models.runners import as_eager
from reid.models.runtime import RuntimeNetwork
from reid.norm import in_callers_order
from reid.norm.batchnorm_layer import DomainBatchNorm
from reid.norm.domain_whitening import DomainWhitening
from reid.records import FloatArray, IntArray, Sample

EMBEDDING = "embedding"  # the last stage
BEFORE, AFTER = "before", "after"  # a layer that normalizes
FEWEST_CAMERAS, FEWEST_IDENTITIES = 2, 4
NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, InstanceBatchNorm, DomainBatchNorm, DomainWhitening)
PENALTY = 1e-2  # of the weights of a probe, as a share of the crops it is fitted to


@dataclass(frozen=True)
class Probe:
    """How well a linear function of a stage tells cameras and identities of crops that it has not seen.

    Attributes:
        group: The crops that were asked, such as "person visible".
        stage: The name of the stage; "embedding" is the last one.
        channels: C of its features.
        camera: Share of the crops of held-out identities whose camera is told rightly, 0..1.
        camera_chance: The same by always saying the most frequent camera.
        identity: Share of the crops of a held-out camera whose identity is told rightly, the mean over the cameras.
        identity_chance: The same by drawing one of the identities.
    """

    group: str
    stage: str
    channels: int
    camera: float
    camera_chance: float
    identity: float
    identity_chance: float

    def to_json(self) -> dict[str, object]:
        """Return the figures as plain values, rounded."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def probe_network(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    workers: int = 0,
    progress: Progress | None = None,
    norms: bool = False,
) -> list[Probe]:
    """Probe every stage of a network on labelled crops, each category and modality by itself.

    Args:
        checkpoint: The network, which knows the cameras of all samples.
        samples: Crops with their cameras and identities.
        workers: Threads that decode images.
        progress: Is called with the number of images done.
        norms: Whether to probe what is before and after every layer that normalizes, in place of the stages.

    Returns:
        One probe for each group and stage, in the order in which an image passes the stages.

    Raises:
        DataError: No group has two cameras that share at least 4 identities.
        ConfigError: Another program runs the network, or it runs an image several times.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        if sample.camera and sample.identity:
            groups[f"{sample.category} {sample.modality}"].append(row)
    usable = {name: rows for name, rows in groups.items() if _can_be_probed([samples[row] for row in rows])}
    if not usable:
        raise DataError(
            f"cameras probe: expected crops of at least {FEWEST_CAMERAS} cameras that share at least"
            f" {FEWEST_IDENTITIES} identities, got none such among {len(samples):,} crops; name the cameras and the"
            " identities"
        )
    chosen = sorted(row for rows in usable.values() for row in rows)
    asked = [samples[row] for row in chosen]
    stages = stage_features(checkpoint, asked, workers=workers, progress=progress, norms=norms)
    place = {row: number for number, row in enumerate(chosen)}
    found = []
    for group, rows in usable.items():
        at = [place[row] for row in rows]
        crops = [samples[row] for row in rows]
        found += [probe_features(group, stage, features[at], crops) for stage, features in stages.items()]
    return found


def _can_be_probed(samples: Sequence[Sample]) -> bool:
    cameras: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        cameras[sample.identity].add(sample.camera)
    shared = [seen for seen in cameras.values() if len(seen) >= FEWEST_CAMERAS]
    return len(shared) >= FEWEST_IDENTITIES


def probe_features(group: str, stage: str, features: FloatArray, samples: Sequence[Sample]) -> Probe:
    """Probe features of a stage.

    The camera is learned from every second identity and asked of the others, and the other way round; the identity is
    learned from all cameras but one and asked of that one.

    Args:
        group: The name of the crops, for the result.
        stage: The name of the stage, for the result.
        features: (N, C) float32, one row for each crop.
        samples: The N crops with camera and identity.

    Example:
        >>> samples = [Sample(f"{n}{c}.jpg", f"person {n}", c) for n in range(8) for c in "ab"]
        >>> camera = np.float32([[sample.camera == "a"] for sample in samples])
        >>> probe_features("person", "layer", camera, samples).camera
        1.0
    """
    _, cameras = np.unique([sample.camera for sample in samples], return_inverse=True)
    _, identities = np.unique([sample.identity for sample in samples], return_inverse=True)
    half = identities % 2 == 0
    told = [_share_told(features, cameras, learned, ~learned) for learned in (half, ~half)]
    by_identity = []
    for camera in np.unique(cameras):
        learned, asked = cameras != camera, cameras == camera
        asked &= np.isin(identities, identities[learned])
        if asked.any():
            by_identity.append(_share_told(features, identities, learned, asked))
    return Probe(
        group,
        stage,
        features.shape[1],
        float(np.mean(told)),
        float(np.bincount(cameras).max() / len(cameras)),
        float(np.mean(by_identity)),
        1 / len(np.unique(identities)),
    )


def _share_told(features: FloatArray, labels: IntArray, learned: BoolArray, asked: BoolArray) -> float:
    """Return the share of the ``asked`` rows whose label a ridge classifier tells that ``learned`` from others."""
    from sklearn.linear_model import RidgeClassifier

    mean, deviation = features[learned].mean(0), features[learned].std(0)
    scaled = (features - mean) / np.maximum(deviation, 1e-6)
    if len(np.unique(labels[learned])) < FEWEST_CAMERAS:
        return float(np.mean(labels[asked] == labels[learned][0]))
    classifier = RidgeClassifier(alpha=PENALTY * np.count_nonzero(learned))
    classifier.fit(scaled[learned], labels[learned])
    return float(np.mean(classifier.predict(scaled[asked]) == labels[asked]))


def stage_features(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    workers: int = 0,
    progress: Progress | None = None,
    norms: bool = False,
) -> dict[str, FloatArray]:
    """Compute the features of every stage: the mean of each channel over the image, and the embedding.

    Of layers that normalize, the features are the mean and the deviation of each channel over the image, which are
    what an instance norm makes equal for all images.

    Args:
        checkpoint: The network.
        samples: The crops.
        workers: Threads that decode images.
        progress: Is called with the number of images done.
        norms: Whether to compute those before and after every layer that normalizes, in place of the stages.

    Returns:
        (N, C) float32 by the name of the stage, in the order in which an image passes them.

    Raises:
        ConfigError: Another program runs the network, or it runs an image several times.
    """
    if isinstance(checkpoint.network, RuntimeNetwork):
        raise ConfigError(f"{checkpoint.source}: another program runs this network, so its stages cannot be seen")
    checkpoint, parts = as_eager(checkpoint), defaultdict[str, list[FloatArray]](list)
    with _watched_norms(checkpoint.network, parts) if norms else _watched(checkpoint.network, parts):
        for batch in load_batches(
            samples,
            checkpoint.transform,
            domain_fields=checkpoint.domain_fields,
            domains=checkpoint.domains,
            workers=workers,
            unknown_domain=checkpoint.unknown_domain,
            decoder=checkpoint.execution.decoder,
        ):
            embedded = checkpoint.embed(batch.images, batch.domain)
            parts[EMBEDDING].append(embedded.cpu().numpy())
            if progress is not None:
                progress(len(embedded))
    found = {name: np.concatenate(rows) for name, rows in parts.items()}
    if any(len(rows) != len(samples) for rows in found.values()):
        raise ConfigError(
            f"{checkpoint.source}: it runs an image several times, so a stage has no single answer; probe it without"
            " flip, and with cameras that it knows"
        )
    return found


@contextmanager
def _watched(network: nn.Module, parts: Mapping[str, list[FloatArray]]) -> Iterator[None]:
    """Keep what the stages of a network put out while it runs."""

    def keeper(kept: list[FloatArray]) -> Callable[[nn.Module, object, object], None]:
        return lambda _layer, _inputs, output: kept.extend(_channel_means(output))

    handles = [layer.register_forward_hook(keeper(parts[name])) for name, layer in stages_of(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watched_norms(network: nn.Module, parts: Mapping[str, list[FloatArray]]) -> Iterator[None]:
    """Keep what comes into the layers that normalize, and what they put out, while a network runs."""

    def before(kept: list[FloatArray]) -> Callable[[nn.Module, tuple[object, ...]], None]:
        return lambda _layer, inputs: kept.extend(_channel_moments(inputs[0]))

    def after(kept: list[FloatArray]) -> Callable[[nn.Module, object, object], None]:
        return lambda _layer, _inputs, output: kept.extend(_channel_moments(output))

    handles = []
    for name, layer in norms_of(network):
        handles.append(layer.register_forward_pre_hook(before(parts[f"{name} {BEFORE}"])))
        handles.append(layer.register_forward_hook(after(parts[f"{name} {AFTER}"])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def norms_of(network: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """List the layers of a network that normalize, with their names; a part of such a layer is none of its own.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Sequential(nn.InstanceNorm2d(8)))
        >>> [name for name, _ in norms_of(net)]
        ['1', '2.0']
    """
    if isinstance(network, NORMS):
        return [(name, network)]
    prefix = f"{name}." if name else ""
    return [found for part, layer in network.named_children() for found in norms_of(layer, prefix + part)]


def stages_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the stages of an embedder: the layers at the top of its backbone, or the parts of a list of layers.

    A layer without parameters changes too little to be a stage of its own.
    """
    top: nn.Module = getattr(network, "backbone", network)
    while len(children := list(top.named_children())) == 1:
        top = children[0][1]
    found = []
    for name, layer in children:
        several = isinstance(layer, nn.ModuleList)
        found += [(f"{name}.{part}", one) for part, one in layer.named_children()] if several else [(name, layer)]
    return [(name, layer) for name, layer in found if any(True for _ in layer.parameters())]


def _channel_means(output: object) -> list[FloatArray]:
    """Return the mean of each channel of (B, C, H, W), of tokens (B, T, C), or of (B, C); nothing for anything else."""
    if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
        return []
    means = output.mean((2, 3)) if output.dim() == 4 else output.mean(1) if output.dim() == 3 else output
    return [in_callers_order(means).float().cpu().numpy().copy()]  # a network with domains sorts the batch by them


def _channel_moments(output: object) -> list[FloatArray]:
    """Return mean and deviation of each channel of (B, C, H, W) or of tokens (B, T, C); (B, C) as it is."""
    if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
        return []
    positions = {2: (), 3: (1,), 4: (2, 3)}[output.dim()]
    moments = torch.cat((output.mean(positions), output.std(positions, correction=0)), 1) if positions else output
    return [in_callers_order(moments).float().cpu().numpy().copy()]
