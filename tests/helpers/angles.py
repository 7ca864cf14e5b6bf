"""Vectors whose ranking can be read off by hand: unit vectors at angles of a circle; a nearer angle scores higher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reid.records import Embeddings, Modality, Sample, Split


def at(degrees: Sequence[float]) -> np.ndarray:
    """Make unit vectors (N, 2) float32.  Angles should differ by at most 180 degrees."""
    radians = np.deg2rad(np.asarray(degrees, np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def rows(split: Split, *entries: tuple, modality: Modality = Modality.VISIBLE) -> list[tuple[Sample, float]]:
    """Make samples of (identity, camera, degrees), and return them with their angles."""
    return [
        (Sample(Path(f"{split}/{identity}/{camera}/{degrees}.jpg"), identity, camera, modality, split=split), degrees)
        for identity, camera, degrees in entries
    ]


def embeddings(pairs: list[tuple[Sample, float]]) -> Embeddings:
    """Make embeddings of samples and their angles."""
    return Embeddings(tuple(sample for sample, _ in pairs), at([degrees for _, degrees in pairs]), "f00d")
