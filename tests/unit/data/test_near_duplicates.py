"""Images that were saved again are found, and no images that only look alike in one respect.

The oracle compares each image with all before it. It must refuse two wrong variants: comparing hashes only, for which
all flat images are one, and taking the same path that is read twice for a duplicate.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from reid.data import near_duplicates
from reid.data.near_duplicates import MOST_BITS, NearDuplicates, current_near_duplicates, duplicates_handled_by
from reid.data.transforms import EvaluationTransform
from reid.errors import DataError
from reid.records import Sample

RESIZE = EvaluationTransform(64, 32).resize


def scene(seed: int) -> Image.Image:
    """Return a smooth image of random colours."""
    noise = np.random.default_rng(seed).integers(0, 255, (12, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((60, 120), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def saved_again(image: Image.Image) -> Image.Image:
    """Return an image after it was shrunk and saved as a JPEG file."""
    stream = BytesIO()
    image.resize((45, 90)).save(stream, "JPEG", quality=70)
    return Image.open(stream).convert("RGB")


def add(found: NearDuplicates, name: str, image: Image.Image) -> None:
    found.add(Sample(Path(name)), RESIZE(image))


def slow_pairs(images: dict[str, Image.Image]) -> dict[str, str]:
    """Compare every image with all before it that resemble no other."""
    kept: dict[str, tuple[int, np.ndarray]] = {}
    pairs = {}
    for name, image in images.items():
        crop = RESIZE(image)
        own = near_duplicates._signs_of(crop), near_duplicates._colours_of(crop)
        for other, (signs, colours) in kept.items():
            if (own[0] ^ signs).bit_count() <= MOST_BITS and near_duplicates._are_near(own[1], colours):
                pairs[name] = other
                break
        else:
            kept[name] = own
    return pairs


def test_images_that_were_saved_again_are_found_and_others_are_not() -> None:
    images = {f"{seed}.jpg": scene(seed) for seed in range(60)}
    images |= {f"{seed} again.jpg": saved_again(scene(seed)) for seed in range(60)}
    found = NearDuplicates()
    for name, image in images.items():
        add(found, name, image)
    pairs = {str(path): str(other) for path, other in found.pairs.items()}
    assert set(pairs) == set(slow_pairs(images))
    assert len(pairs) > 50
    assert all(path == other.replace(".jpg", " again.jpg") for path, other in pairs.items())


def test_flat_images_of_other_colours_and_the_same_path_are_none() -> None:
    found = NearDuplicates()
    for number, colour in enumerate(((10, 10, 10), (200, 200, 200), (200, 20, 20))):
        add(found, f"{number}.jpg", Image.new("RGB", (32, 64), colour))
    add(found, "0.jpg", Image.new("RGB", (32, 64), (10, 10, 10)))
    assert len(found) == 0
    add(found, "3.jpg", Image.new("RGB", (32, 64), (11, 10, 10)))
    assert list(found.pairs.values()) == [Path("0.jpg")]


def test_many_flat_images_are_compared_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    near = near_duplicates._are_near
    monkeypatch.setattr(near_duplicates, "_are_near", lambda a, b: (compared.append(1), near(a, b))[1])
    monkeypatch.setattr(near_duplicates, "MOST_COMPARED", 5)
    found = NearDuplicates()
    for number in range(40):
        found.add(Sample(Path(f"{number}.jpg")), torch.full((3, 8, 9), 6 * number, dtype=torch.uint8))
    assert len(compared) <= 5 * 40


def test_the_first_one_can_be_an_error() -> None:
    found = NearDuplicates(stops=True)
    add(found, "1.jpg", scene(1))
    with pytest.raises(DataError, match=r"2\.jpg: is nearly the same image as 1\.jpg"):
        add(found, "2.jpg", scene(1))


def test_nobody_looks_for_them_unless_asked() -> None:
    assert current_near_duplicates() is None
    with duplicates_handled_by(found := NearDuplicates()):
        assert current_near_duplicates() is found
    assert current_near_duplicates() is None
