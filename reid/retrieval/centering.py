"""Feature centering: subtract from each embedding the mean embedding of its camera.

This adapts a network to a camera without access to the network, for example where it has no batch normalization
(LayerNorm) or where only its embeddings are available. It needs no identities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from reid.errors import DataError
from reid.records import Embeddings, FloatArray, IntArray, domain_of

FEWEST = 2  # crops of a camera; one vector minus its own mean is zero


def camera_means(embeddings: Embeddings, domain_fields: Sequence[str] = ("camera",)) -> dict[str, FloatArray]:
    """Compute the mean embedding of every camera.

    Args:
        embeddings: At least two crops of every camera.
        domain_fields: The fields of a sample that name its camera, or another kind of domain.

    Returns:
        The mean vector (D,) float32 by the name of the camera.

    Raises:
        DataError: A camera has a single crop.

    Example:
        >>> from pathlib import Path
        >>> from reid.records import Sample
        >>> samples = (Sample(Path("1.jpg"), camera="door"), Sample(Path("2.jpg"), camera="door"))
        >>> camera_means(Embeddings(samples, np.eye(2, dtype=np.float32), "f00d"))["door"].tolist()
        [0.5, 0.5]
    """
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
    """Subtract from each vector the mean of its camera, and scale the result to unit length.

    Args:
        embeddings: The embeddings.
        means: The mean vector (D,) of every camera, from :func:`camera_means`.
        domain_fields: The fields of a sample that name its camera, as for the means.

    Returns:
        Embeddings with a fingerprint of their own, so that they are only compared with embeddings that were centered
        with the same means.

    Raises:
        DataError: A camera has no mean, or a vector equals the mean of its camera.
    """
    labels = [domain_of(sample, domain_fields) for sample in embeddings.samples]
    missing = sorted(set(labels) - set(means))
    if missing:
        raise DataError(f"centering: no mean of camera {', '.join(missing)}; measure it on crops of that camera")
    moved = embeddings.vectors - np.stack([means[label] for label in labels])
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    if np.any(lengths < 1e-6):
        row = int(np.argmin(lengths))
        raise DataError(
            f'{embeddings.samples[row].path}: its embedding equals the mean of camera "{labels[row]}", so nothing is'
            " left of it when the mean is subtracted; look whether all crops of this camera show the same picture, and"
            " add others or leave the camera out"
        )
    digest = hashlib.sha256(embeddings.fingerprint.encode())
    for name in sorted(means):
        digest.update(name.encode() + means[name].tobytes())
    vectors = (moved / lengths).astype(np.float32)
    return Embeddings(embeddings.samples, vectors, digest.hexdigest()[: len(embeddings.fingerprint)])


def centered_by_camera(vectors: FloatArray, cameras: IntArray) -> FloatArray:
    """Subtract from each row the mean of its camera, and scale to unit length.

    Args:
        vectors: (N, D) float32.
        cameras: (N,) int64.

    Returns:
        (N, D) float32; a row that equals the mean of its camera stays as it was.

    Example:
        >>> centered_by_camera(np.float32([[1, 1], [1, -1], [0, 1]]), np.array([0, 0, 1])).tolist()
        [[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]]
    """
    means = np.zeros((int(cameras.max(initial=0)) + 1, vectors.shape[1]))
    np.add.at(means, cameras, vectors)
    means /= np.bincount(cameras, minlength=len(means)).clip(1)[:, None]
    moved = vectors - means[cameras]
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.where(lengths > 1e-6, moved / lengths.clip(1e-6), vectors).astype(np.float32)
