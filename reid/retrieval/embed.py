"""Embed samples, and keep embeddings in files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from reid.data.loading import ImageChange, OnUnreadable, Progress, domain_indices, load_batches
from reid.errors import DataError
from reid.models.checkpoint import Checkpoint
from reid.models.execution import AUTO
from reid.models.freed_memory import freed_memory_kept
from reid.models.runtime_choice import choose_runtime
from reid.records import Embeddings, IntArray, Sample, domain_of
from reid.retrieval.row_table import first_line
from reid.retrieval.sample_table import decode_samples, encode_samples
from reid.retrieval.storage import write_private

FORMAT = "reid-embeddings-1"


def embed(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
    on_unreadable: OnUnreadable | None = None,
    change: ImageChange | None = None,
) -> Embeddings:
    """Embed samples, each with the statistics of its own normalization domain.

    The checkpoint decides on which device and by which runtime
    (:meth:`~reid.models.checkpoint.Checkpoint.with_execution`).

    Args:
        checkpoint: The network.
        samples: At least one sample.
        batch_size: How many images the network embeds at once.
        workers: How many threads read images ahead; 0 reads them between the batches.
        progress: Called with the number of images since its last call.
        on_unreadable: Is told of each sample whose image cannot be read, and why; such samples are left out.  Without
            it the first one is an error.
        change: Changes every image before it is resized.

    Returns:
        The embeddings, in the order of ``samples``, with the fingerprint of the checkpoint.

    Raises:
        DataError: There are no samples, or an image cannot be read.
        ConditionError: The network has no statistics for the domain of a sample.
        WeightsError: The runtime gives other embeddings than the eager network.
    """
    if not samples:
        raise DataError("no samples to embed; the selection is empty")
    checkpoint = choose_runtime(checkpoint, samples)
    order = _order_to_embed(checkpoint, samples)
    batches = load_batches(
        [samples[row] for row in order.tolist()],
        checkpoint.transform,
        domain_fields=checkpoint.domain_fields,
        domains=checkpoint.domains,
        batch_size=batch_size,
        workers=workers,
        unknown_domain=checkpoint.unknown_domain,
        decoder=checkpoint.execution.decoder,
        on_unreadable=on_unreadable,
        change=change,
        fast=checkpoint.execution.runtime not in ("eager", AUTO),
        is_normalised=False,
    )
    vectors, is_embedded = np.empty((0, 0), np.float32), np.zeros(len(samples), np.bool_)
    with freed_memory_kept():
        for batch in batches:
            part = checkpoint.embed(batch.images, batch.domain).numpy()  # (B, D)
            if not is_embedded.any():
                vectors = np.empty((len(samples), part.shape[1]), np.float32)
            rows = order[list(batch.rows)]
            vectors[rows], is_embedded[rows] = part, True
            if progress is not None:
                progress(len(part))
    if is_embedded.all():
        return Embeddings(tuple(samples), vectors, checkpoint.fingerprint)
    if on_unreadable is None or not is_embedded.any():
        raise DataError(f"embedded {is_embedded.sum()} of {len(samples)} samples; none of the others can be read")
    kept = np.flatnonzero(is_embedded)
    return Embeddings(tuple(samples[row] for row in kept.tolist()), vectors[kept], checkpoint.fingerprint)


def distinct_images(checkpoint: Checkpoint, samples: Sequence[Sample]) -> tuple[list[Sample], list[int]]:
    """Return the samples of distinct images and domains, and for each of all samples which of them has its vector."""
    keys = [(sample.path, domain_of(sample, checkpoint.domain_fields)) for sample in samples]
    distinct = dict(zip(keys, samples, strict=True))
    row_of = {key: row for row, key in enumerate(distinct)}
    return list(distinct.values()), [row_of[key] for key in keys]


def embed_distinct(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    workers: int = 0,
    progress: Progress | None = None,
    on_unreadable: OnUnreadable | None = None,
    change: ImageChange | None = None,
) -> Embeddings:
    """Embed samples as :func:`embed` does, an image that is listed several times once.

    Args:
        checkpoint: The network.
        samples: At least one sample.
        workers: How many threads read images ahead.
        progress: Called with the number of images since its last call; there are as many as
            :func:`distinct_images` returns.
        on_unreadable: As for :func:`embed`.
        change: As for :func:`embed`.

    Returns:
        The embeddings, in the order of ``samples``; all rows of an image have the same vector.

    Raises:
        DataError: There are no samples, or an image cannot be read.
    """
    distinct, rows = distinct_images(checkpoint, samples)
    found = embed(checkpoint, distinct, workers=workers, progress=progress, on_unreadable=on_unreadable, change=change)
    if len(found) == len(samples):
        return found
    read = {id(sample): row for row, sample in enumerate(found.samples)}  # embed keeps the records themselves
    vector_of = [read.get(id(sample), -1) for sample in distinct]
    kept = [number for number, row in enumerate(rows) if vector_of[row] >= 0]
    vectors = found.vectors[[vector_of[rows[number]] for number in kept]]
    return Embeddings(tuple(samples[number] for number in kept), vectors, found.fingerprint)


def _order_to_embed(checkpoint: Checkpoint, samples: Sequence[Sample]) -> IntArray:
    """The rows (N,) of the samples in the order in which they are embedded: camera by camera where that is faster."""
    if not checkpoint.runner.get(checkpoint).wants_sorted or not checkpoint.domain_fields:
        return np.arange(len(samples))
    domains = domain_indices(samples, checkpoint.domain_fields, checkpoint.domains, checkpoint.unknown_domain)
    order: IntArray = np.argsort(domains.numpy(), kind="stable")
    return order


def dimension_of(checkpoint: Checkpoint) -> int:
    """Return the length of a vector of a network."""
    images = torch.zeros(1, 3, checkpoint.transform.height, checkpoint.transform.width)
    return int(checkpoint.embed(images, 0 if checkpoint.domain_fields else None).shape[1])


def save_embeddings(embeddings: Embeddings, path: Path) -> None:
    """Write embeddings to one safetensors file that only its owner may read.

    The file holds the tensors ``vectors`` (N, D) float32 and ``samples``, the bytes of a Parquet table. Paths of
    samples are written as they are.  A checksum in the header covers all of it.

    Args:
        embeddings: The embeddings.
        path: The file; it is replaced as a whole or not at all.

    Raises:
        DataError: The file cannot be written.
    """
    table = np.frombuffer(encode_samples(embeddings.samples), np.uint8)
    tensors: dict[str, npt.NDArray[Any]] = {"vectors": np.ascontiguousarray(embeddings.vectors), "samples": table}
    metadata = {"format": FORMAT, "fingerprint": embeddings.fingerprint}
    metadata["check"] = _checksum(tensors, embeddings.fingerprint)
    try:
        write_private(path, lambda part: save_file(tensors, part, metadata))
    except OSError as error:
        raise DataError(
            f"{path}: the embeddings cannot be written ({error.strerror or error}); choose another folder or free some"
            " space"
        ) from error


def load_embeddings(path: Path) -> Embeddings:
    """Read embeddings that :func:`save_embeddings` wrote.

    Args:
        path: The file.

    Returns:
        The same samples, vectors and fingerprint.

    Raises:
        DataError: The file is missing, damaged or of another format.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> embeddings = Embeddings((Sample(Path("1.jpg")),), np.float32([[0, 1]]), "f00d")
        >>> with TemporaryDirectory() as folder:
        ...     save_embeddings(embeddings, Path(folder) / "embeddings.safetensors")
        ...     load_embeddings(Path(folder) / "embeddings.safetensors").vectors.tolist()
        [[0.0, 1.0]]
    """
    if not path.is_file():
        raise DataError(f'{path}: no such file; make embeddings with "reid embed"')
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(f'{path}: expected embeddings ("{FORMAT}"), got "{metadata.get("format", "unknown")}"')
            tensors = {name: file.get_tensor(name) for name in ("vectors", "samples")}
            fingerprint = metadata["fingerprint"]
        if metadata.get("check") not in (None, _checksum(tensors, fingerprint)):  # version 0.1.0 wrote none
            raise ValueError("its contents are not what was written")
        samples = decode_samples(tensors["samples"].tobytes(), path)
        return Embeddings(samples, tensors["vectors"], fingerprint)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: damaged or not an embeddings file ({first_line(error)}); embed again") from error


def _checksum(tensors: Mapping[str, npt.NDArray[Any]], fingerprint: str) -> str:
    """Return SHA-256 in hex over the fingerprint and the shapes, types and bytes of the tensors."""
    summary = hashlib.sha256(fingerprint.encode())
    for name, tensor in sorted(tensors.items()):
        summary.update(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
        summary.update(np.ascontiguousarray(tensor).data if tensor.size else b"")
    return summary.hexdigest()
