"""Drawn embeddings of people in cameras, and galleries of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from reid.records import Embeddings, FloatArray, Sample

START = datetime(2024, 5, 1, 12)


def people(
    count: int = 12, cameras: Sequence[str] = ("door", "yard"), crops: int = 4, *, noise: float = 0.2, seed: int = 0
) -> Embeddings:
    """Return crops of people; each has a direction of its own, and each camera moves all of them.

    Person p is in camera c from minute 10 p + 3 c on, one crop a second.
    """
    random = np.random.default_rng(seed)
    directions, shifts = random.standard_normal((count, 32)), random.standard_normal((len(cameras), 32)) / 2
    samples, vectors = [], []
    for person in range(count):
        for position, camera in enumerate(cameras):
            for number in range(crops):
                time = START + timedelta(minutes=10 * person + 3 * position, seconds=number)
                samples.append(Sample(Path(f"p{person:02}_{camera}_{number}.jpg"), f"p{person:02}", camera, time=time))
                vectors.append(directions[person] + shifts[position] + noise * random.standard_normal(32))
    return Embeddings(tuple(samples), unit(np.array(vectors)), "f00d")


def unit(vectors: np.ndarray) -> FloatArray:
    """Scale rows to unit length."""
    scaled: FloatArray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def of_people(embeddings: Embeddings, numbers: Sequence[int]) -> Embeddings:
    """Return the crops of some people."""
    names = {f"p{number:02}" for number in numbers}
    return embeddings.select(np.array([sample.identity in names for sample in embeddings.samples]))
