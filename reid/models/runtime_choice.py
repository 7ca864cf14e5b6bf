"""Choose what runs a network by measuring, for the runtime "auto"."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from reid.data.loading import Batch, load_batches
from reid.errors import DataError, ReidError
from reid.models.checkpoint import Checkpoint
from reid.models.execution import AUTO, PRECISIONS, PRECISIONS_OF
from reid.models.graph_export import EXPORT_PACKAGES
from reid.records import Sample

MEASURED = 32  # images that each runtime embeds again and again
SECONDS = 2.0  # that all runtimes are measured for
FEWEST = 256  # images from which on anything is measured
WORTH_EXPORTING = 60.0  # seconds of eager work from which on an export pays, which takes about ten
# What has to be installed for a runtime beside PyTorch.
PACKAGES: dict[str, tuple[str, ...]] = {
    "eager": (),
    "folded": (),
    "onnx": ("onnxruntime", *EXPORT_PACKAGES),
    "openvino": ("openvino", *EXPORT_PACKAGES),
}


def choose_runtime(checkpoint: Checkpoint, samples: Sequence[Sample]) -> Checkpoint:
    """Choose the fastest runtime for the embedding of some samples, where the checkpoint leaves it open.

    Every runtime that is installed embeds the first images, for two seconds in all.  One that needs an export is only
    tried where there are many samples.

    Args:
        checkpoint: The network.
        samples: What is to be embedded.

    Returns:
        The same network with the fastest runtime; the checkpoint itself where its runtime is not "auto", or where there
        are too few samples for a choice to pay.  A choice is kept for the next call.

    Raises:
        DataError: None of the first images can be read.
    """
    if checkpoint.execution.runtime != AUTO or len(samples) < FEWEST:
        return checkpoint
    if checkpoint.runner.chosen is None:
        checkpoint.runner.chosen = _fastest(checkpoint, samples)
    return checkpoint.runner.chosen


def _fastest(checkpoint: Checkpoint, samples: Sequence[Sample]) -> Checkpoint:
    execution = checkpoint.execution
    batch = _first_batch(checkpoint, samples)
    speeds: dict[str, float] = {}
    found: dict[str, Checkpoint] = {}
    for name, packages in PACKAGES.items():
        if any(find_spec(package) is None for package in packages):
            continue
        if packages and len(samples) / speeds["eager"] < WORTH_EXPORTING:
            continue
        if execution.precision not in PRECISIONS_OF.get(name, PRECISIONS) or (packages and execution.device != "cpu"):
            continue
        candidate = checkpoint.with_execution(replace(execution, runtime=name))
        try:
            speeds[name] = _images_per_second(candidate, batch)
        except ReidError:  # this network cannot be folded or exported, or not with equal embeddings
            if name == "eager":
                raise
            continue
        found[name] = candidate
    best = found[max(speeds, key=lambda name: speeds[name])]
    compared = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    best.runner.reason = f"auto chose {best.execution.runtime} (images a second: {compared})"
    return best


def _first_batch(checkpoint: Checkpoint, samples: Sequence[Sample]) -> Batch:
    batches = load_batches(
        samples[:MEASURED],
        checkpoint.transform,
        domain_fields=checkpoint.domain_fields,
        domains=checkpoint.domains,
        batch_size=MEASURED,
        unknown_domain=checkpoint.unknown_domain,
        on_unreadable=lambda *_: None,
        is_normalised=False,
    )
    batch = next(batches, None)
    if batch is None:
        raise DataError(
            f"{samples[0].path}: cannot be read, nor the {MEASURED - 1} images after it; nothing to measure"
        )
    return batch


def _images_per_second(checkpoint: Checkpoint, batch: Batch) -> float:
    """Embed a batch again and again; its first embedding, which may build something, does not count."""
    checkpoint.embed(batch.images, batch.domain)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS / len(PACKAGES) or not count:
        checkpoint.embed(batch.images, batch.domain)
        count += len(batch.images)
    return count / (time.perf_counter() - started)
