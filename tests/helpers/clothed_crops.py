"""Crops of drawn people: a background, a shirt and trousers of random colours, so that one half tells the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from reid.records import Sample


def draw_clothed(people: int, seed: int = 0, size: tuple[int, int] = (64, 32)) -> np.ndarray:
    """Draw (N, H, W, 3) uint8: the colours do not change across the width, and there is a little noise."""
    random, (height, width) = np.random.default_rng(seed), size
    crops = np.empty((people, height, width, 3))
    for crop in crops:
        background, shirt, trousers = random.integers(30, 226, (3, 3))
        crop[:] = background
        crop[height // 8 : height // 2] = shirt
        crop[height // 2 : -height // 16] = trousers
    crops += random.normal(0, 4, crops.shape)
    return crops.clip(0, 255).astype(np.uint8)


def write_clothed(folder: Path, people: int, *, splits: tuple[str, ...] = ("train",), infrared: bool = False) -> Path:
    """Write crops, one a person and split, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,identity,camera,modality,split"]
    for number, split in enumerate(splits):
        for person, pixels in enumerate(draw_clothed(people, seed=0)):
            name = f"{split}-p{person:02}.png"
            image = Image.fromarray(np.roll(pixels, number, 1))
            (image.convert("L") if infrared else image).save(folder / name)
            lines.append(f"{name},p{person:02},c{number},{'infrared' if infrared else 'visible'},{split}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def samples_in(folder: Path, people: int, split: str = "train") -> list[Sample]:
    """Return the samples of the crops of :func:`write_clothed` in one split."""
    return [Sample(folder / f"{split}-p{p:02}.png", f"p{p:02}", "c0", split=split) for p in range(people)]
