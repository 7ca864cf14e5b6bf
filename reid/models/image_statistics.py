"""Statistics of single images in the norm layers of a network.

Statistics of any subset of the images follow from these without running the network again, which makes resampling fast.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.data.loading import Progress, domain_indices, load_batches
from reid.errors import ConfigError, DataError
from reid.models.checkpoint import Checkpoint
from reid.models.runners import as_eager
from reid.norm.convert import norm_layers
from reid.norm.statistics import as_maps, moments
from reid.records import Sample

THUMBNAIL = (16, 8)  # height and width


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """N images of one normalization domain, each with the moments of its activations over positions.

    Args:
        layers: The names of the norm layers that the images passed.
        widths: How many channels each of these layers has; S in all.
        mean: (N, S) float32, the means of all layers side by side.
        var: (N, S) float32, the biased variances of all layers side by side.
        vectors: (N, D) float32, the embeddings, rows of unit length.
        thumbnails: (N, T) float32, tiny images without their mean, rows of unit length, so that the inner product of
            two is their correlation.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    mean: Tensor
    var: Tensor
    vectors: Tensor
    thumbnails: Tensor

    def __len__(self) -> int:
        return len(self.mean)


def measure_images(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> ImageStatistics:
    """Run images of one domain through a network that has statistics for it, and measure each of them.

    Args:
        checkpoint: The network, converted and calibrated.
        samples: Crops of one domain.
        batch_size: Images that run through the network at once.
        workers: Processes that read images; 0 reads them in this one.
        progress: Is called with the number of images of each batch.

    Raises:
        ConfigError: If the network has no domains.
        ConditionError: If it does not know the domain.
        DataError: If the samples are of several domains.
    """
    if not checkpoint.domain_fields or not checkpoint.has_statistics:
        raise ConfigError(f"{checkpoint.source}: these weights have no statistics per camera; pass --profiles")
    rows = set(domain_indices(samples, checkpoint.domain_fields, checkpoint.domains).tolist())
    if len(rows) != 1:
        raise DataError(f"moments: expected images of one camera, got {len(samples)} images of {len(rows)}")
    checkpoint = as_eager(checkpoint)
    found: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    vectors, thumbnails = [], []
    layers = norm_layers(checkpoint.network)
    hooks = [layer.register_forward_pre_hook(partial(_collect_moments, found[name])) for name, layer in layers.items()]
    try:
        decoder = checkpoint.execution.decoder
        for batch in load_batches(
            samples, checkpoint.transform, batch_size=batch_size, workers=workers, decoder=decoder
        ):
            vectors.append(checkpoint.embed(batch.images, next(iter(rows))))
            thumbnails.append(_make_thumbnails(batch.images))
            if progress is not None:
                progress(len(batch.images))
    finally:
        for hook in hooks:
            hook.remove()
    used = tuple(name for name in layers if found[name])
    mean, var = (torch.cat([torch.cat([part[k] for part in found[name]]) for name in used], 1) for k in (0, 1))
    widths = tuple(found[name][0][0].shape[1] for name in used)
    return ImageStatistics(used, widths, mean, var, torch.cat(vectors), torch.cat(thumbnails))


def _collect_moments(found: list[tuple[Tensor, Tensor]], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    mean, var = moments(as_maps(inputs[0]))
    found.append((mean.float().cpu(), var.float().cpu()))


def _make_thumbnails(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, T); the correlation of two shows how nearly they are the same image."""
    tiny = functional.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)
    return functional.normalize(tiny - tiny.mean(1, keepdim=True))
