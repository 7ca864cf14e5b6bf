"""Embed samples, and keep embeddings in files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from reid.data.loading import Progress, load_batches
from reid.errors import DataError
from reid.models.checkpoint import Checkpoint
from reid.records import Embeddings, FloatArray, Sample
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
) -> Embeddings:
    """Embed samples, each with the statistics of its own normalization domain.

    Args:
        checkpoint: The network.
        samples: At least one sample.
        batch_size: How many images the network embeds at once.
        workers: How many threads read images ahead; 0 reads them between the batches.
        progress: Called with the number of images since its last call.

    Returns:
        The embeddings, in the order of ``samples``, with the fingerprint of the checkpoint.

    Raises:
        DataError: There are no samples, or an image cannot be read.
        ConditionError: The network has no statistics for the domain of a sample.
    """
    if not samples:
        raise DataError("no samples to embed; the selection is empty")
    vectors: FloatArray | None = None
    done = 0
    for batch in load_batches(
        samples,
        checkpoint.transform,
        domain_fields=checkpoint.domain_fields,
        domains=checkpoint.domains,
        batch_size=batch_size,
        workers=workers,
        unknown_domain=checkpoint.unknown_domain,
    ):
        part = checkpoint.embed(batch.images, batch.domain).cpu().numpy()  # (B, D)
        if vectors is None:
            vectors = np.empty((len(samples), part.shape[1]), np.float32)
        vectors[done : done + len(part)] = part
        done += len(part)
        if progress is not None:
            progress(len(part))
    if vectors is None or done != len(samples):
        raise DataError(f"embedded {done} of {len(samples)} samples; the loader ended early")
    return Embeddings(tuple(samples), vectors, checkpoint.fingerprint)


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
