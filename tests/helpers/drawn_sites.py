"""Small sites of drawn crops: every person wears two colours, and every camera changes all colours in its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from reid.records import Sample

HEIGHT, WIDTH = 64, 32
Count = Callable[[int, str], int]


def draw_site(
    folder: Path,
    *,
    people: int = 12,
    cameras: Sequence[str] = ("door", "yard"),
    crops: int | Count = 4,
    infrared: Sequence[str] = (),
    seed: int = 0,
) -> list[Sample]:
    """Write crops of 64 x 32 pixels and return their samples, identities included.

    ``crops`` is the number for each person and camera, or a function of the person's number and the camera.
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    colours = random.uniform(30, 225, (people, 2, 3))
    gains = {camera: random.uniform(0.7, 1.3, 3) for camera in cameras}
    samples = []
    for person in range(people):
        for camera in cameras:
            for number in range(crops if isinstance(crops, int) else crops(person, camera)):
                pixels = person_pixels(colours[person], random) * gains[camera]
                if camera in infrared:
                    pixels = random.uniform(40, 200) + random.normal(0, 20, pixels.shape)
                path = folder / f"p{person:02}_{camera}_{number}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
                modality = "infrared" if camera in infrared else "visible"
                samples.append(Sample(path, f"p{person:02}", camera, modality))
    return samples


def person_pixels(colours: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(64, 32, 3) float: the two colours, with an edge that moves a little, and noise."""
    edge = 32 + random.integers(-4, 5)
    pixels = np.empty((HEIGHT, WIDTH, 3))
    pixels[:edge], pixels[edge:] = colours
    return pixels + random.normal(0, 12, pixels.shape)
