"""From samples to embeddings, and embeddings on disk.

Knows a checkpoint and samples; it knows no index and no identity.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from reid.retrieval.storage import decode_samples, encode_samples, write_private

FORMAT = "reid-embeddings-1"


def embed(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> Embeddings:
    """The embeddings of ``samples``, in their order, each under its own normalization domain.

    ``workers`` threads read pictures ahead; ``progress`` is called with the number of images done
    since the last call.  A picture that cannot be read stops the run.
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
    """Write one safetensors file that only the owner may read; paths of samples stay as they are.

    Tensors: ``vectors`` (N, D) float32; ``samples``, the bytes of a Parquet table.
    """
    table = np.frombuffer(encode_samples(embeddings.samples), np.uint8)
    tensors: dict[str, npt.NDArray[Any]] = {"vectors": np.ascontiguousarray(embeddings.vectors), "samples": table}
    metadata = {"format": FORMAT, "fingerprint": embeddings.fingerprint}
    try:
        write_private(path, lambda part: save_file(tensors, part, metadata))
    except OSError as error:
        raise DataError(
            f"{path}: the embeddings cannot be written ({error.strerror or error}); choose another place or free some"
            " space"
        ) from error


def load_embeddings(path: Path) -> Embeddings:
    """What :func:`save_embeddings` wrote; DataError when the file is missing, damaged or another kind."""
    if not path.is_file():
        raise DataError(f'{path}: no such file; make embeddings with "reid embed"')
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(f'{path}: expected embeddings ("{FORMAT}"), got "{metadata.get("format", "unknown")}"')
            vectors, table = file.get_tensor("vectors"), file.get_tensor("samples")
            fingerprint = metadata["fingerprint"]
    except (SafetensorError, OSError, KeyError) as error:
        raise DataError(f"{path}: damaged or not an embeddings file ({error}); embed again") from error
    return Embeddings(decode_samples(table.tobytes(), path), vectors, fingerprint)
