"""Independent random generators, one for everything that is drawn, found by name.

A generator depends only on the seed and its name and not on what else is drawn, so a larger plan contains a smaller one
byte for byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

Choice = TypeVar("Choice")


def generator(seed: int, *name: str | int) -> np.random.Generator:
    """Create the generator of a name.

    Args:
        seed: The seed of the street.
        *name: Words and numbers; words are hashed with CRC-32, which gives the same result on every machine.

    Returns:
        The generator.

    Example:
        >>> generator(0, "person", 7).random() == generator(0, "person", 7).random()
        True
    """
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in name]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words])))


def pick(rng: np.random.Generator, weights: Mapping[Choice, float]) -> Choice:
    """Draw one key of ``weights`` with a probability in proportion to its value."""
    total = sum(weights.values())
    draw = rng.random() * total
    for key, weight in weights.items():
        draw -= weight
        if draw < 0:
            return key
    return key


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw uniformly from [low, high)."""
    return low + (high - low) * float(rng.random())


def clipped(rng: np.random.Generator, mean: float, spread: float, reach: float = 2.2) -> float:
    """Draw from a normal distribution, clipped at ``reach`` standard deviations."""
    return mean + spread * float(np.clip(rng.standard_normal(), -reach, reach))
