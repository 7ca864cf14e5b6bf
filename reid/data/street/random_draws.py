"""One independent random generator for every thing that is drawn, found by its name.

A generator depends on the seed and the name alone, never on how much else is made; so a larger
plan contains a smaller one byte for byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

Choice = TypeVar("Choice")


def generator(seed: int, *name: str | int) -> np.random.Generator:
    """The generator called ``name`` under ``seed``; words are hashed with CRC-32, the same everywhere."""
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in name]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words])))


def pick(rng: np.random.Generator, weights: Mapping[Choice, float]) -> Choice:
    """One key of ``weights``, with probability in proportion to its value."""
    total = sum(weights.values())
    draw = rng.random() * total
    for key, weight in weights.items():
        draw -= weight
        if draw < 0:
            return key
    return key


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform draw from [low, high)."""
    return low + (high - low) * float(rng.random())


def clipped(rng: np.random.Generator, mean: float, spread: float, reach: float = 2.2) -> float:
    """A normal draw, cut at ``reach`` standard deviations."""
    return mean + spread * float(np.clip(rng.standard_normal(), -reach, reach))
