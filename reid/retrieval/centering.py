"""Feature centering: the mean vector of a camera is subtracted from its embeddings.

What is left to do per camera for a network that keeps no statistics (LayerNorm, or a model that only answers).
No labels are needed.  Knows vectors and samples, no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from reid.errors import DataError
from reid.records import Embeddings, FloatArray, domain_of

FEWEST = 2  # one vector less itself is nothing


def camera_means(embeddings: Embeddings, domain_fields: Sequence[str] = ("camera",)) -> dict[str, FloatArray]:
    """The mean vector (D,) float32 of every camera, or of what ``domain_fields`` name; DataError below two rows."""
    labels = np.array([domain_of(sample, domain_fields) for sample in embeddings.samples])
    means = {}
    for name in np.unique(labels).tolist():
        rows = embeddings.vectors[labels == name]
        if len(rows) < FEWEST:
            raise DataError(f'centering: expected at least {FEWEST} crops of camera "{name}", got {len(rows)}')
        means[str(name)] = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return means


def centered(
    embeddings: Embeddings, means: Mapping[str, FloatArray], domain_fields: Sequence[str] = ("camera",)
) -> Embeddings:
    """x -> (x - mean of its camera) / length, row by row, under a fingerprint of its own.

    Compare only with embeddings centered by the same ``means``.  Raises DataError for a camera without a mean.
    """
    labels = [domain_of(sample, domain_fields) for sample in embeddings.samples]
    missing = sorted(set(labels) - set(means))
    if missing:
        raise DataError(f"centering: no mean of camera {', '.join(missing)}; measure it on crops of that camera")
    moved = embeddings.vectors - np.stack([means[label] for label in labels])
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    if np.any(lengths < 1e-6):
        row = int(np.argmin(lengths))
        raise DataError(f"{embeddings.samples[row].path}: equals the mean of its camera, so nothing is left of it")
    used = hashlib.sha256(embeddings.fingerprint.encode())
    for name in sorted(means):
        used.update(name.encode() + means[name].tobytes())
    vectors = (moved / lengths).astype(np.float32)
    return Embeddings(embeddings.samples, vectors, used.hexdigest()[: len(embeddings.fingerprint)])
