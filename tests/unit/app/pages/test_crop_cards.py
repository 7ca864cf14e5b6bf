"""A crop whose file is gone is shown by the thumbnail that the gallery keeps, on the page and to other programs."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.asking_pages import asking, service_of
from helpers.person_crops import unit
from reid.app.opened_gallery import open_served_gallery
from reid.app.pages.crop_cards import crop_of
from reid.errors import DataError
from reid.records import Embeddings, Sample
from reid.retrieval.gallery import Gallery
from reid.retrieval.growth import add_samples

RED, BLUE = (220, 30, 20), (20, 30, 220)


def mean_colour(content: bytes) -> list[int]:
    pixels = np.asarray(Image.open(BytesIO(content)).convert("RGB"), np.float64)
    return [int(value) for value in pixels.mean(axis=(0, 1))]


def colour_of(uri: str) -> list[int]:
    return mean_colour(b64decode(uri.partition(",")[2]))


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A gallery with thumbnails of a red and a blue crop, whose files are gone, and a grey one without a thumbnail."""
    samples = []
    for number, colour in enumerate((RED, BLUE)):
        path = tmp_path / f"crop-{number}.png"
        Image.new("RGB", (32, 64), colour).save(path)
        samples.append(Sample(path, f"p{number}", f"c{number}"))
    vectors = unit(np.random.default_rng(0).standard_normal((3, 8)))
    rows = {sample.path: vectors[number : number + 1] for number, sample in enumerate(samples)}

    def embed(chosen: object) -> Embeddings:
        found = tuple(chosen)  # type: ignore[call-overload]
        return Embeddings(found, np.concatenate([rows[one.path] for one in found]), "f00d")

    folder = tmp_path / "crops"
    Gallery.create(folder, "f00d", 8)
    add_samples(folder, samples, embed, with_thumbnails=True)
    Gallery.open(folder).add(Embeddings((Sample(tmp_path / "never.png", "p2", "c2"),), vectors[2:], "f00d"))
    for sample in samples:
        sample.path.unlink()
    return folder


def test_a_missing_file_is_shown_by_its_thumbnail(moved: Path, tmp_path: Path) -> None:
    service = service_of(open_served_gallery(moved), tmp_path / "state")
    gallery = service.data.main.gallery
    ids = gallery.table.row_ids.tolist()
    shown = [colour_of(crop_of(gallery.table.samples[row], "", gallery, ids[row]).uri) for row in range(3)]
    np.testing.assert_allclose(shown[:2], (RED, BLUE), atol=12)
    assert max(shown[2]) - min(shown[2]) < 30, "a crop without a thumbnail is grey"
    assert colour_of(crop_of(gallery.table.samples[0], "").uri) == shown[2], "without its gallery, too"
    np.testing.assert_allclose(mean_colour(service.image_of(ids[1])), BLUE, atol=12)
    with pytest.raises(DataError, match="crop 2"):
        service.image_of(ids[2])


def test_the_answers_of_a_search_are_seen(moved: Path, tmp_path: Path) -> None:
    ask, _, _ = asking(service_of(open_served_gallery(moved), tmp_path / "state"))
    answers = ask("search", "search", query="r1", cross=False).parts["answers"]
    uris = [part.partition('"')[0] for part in answers.split('src="')[1:]]
    assert len(uris) == 2
    assert any(colour_of(uri)[0] > 180 for uri in uris), "the red one"
    assert "dialog-content" in ask("search", "enlarge", row="0").parts
