"""Thumbnails are kept with their rows, small, checked, and gone with them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.random_embeddings import random_rows
from reid.errors import GalleryError
from reid.records import Embeddings, Sample
from reid.retrieval.exchange import merge_galleries
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_header import THUMBNAILS
from reid.retrieval.growth import add_samples
from reid.retrieval.thumbnails import BOX, LARGEST, thumbnail_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gallery of four rows with thumbnails, one colour each, then two without and one with."""
    gallery = Gallery.create(tmp_path / "g", "f00d", 4)
    for numbers, kept in ((range(4), True), (range(4, 6), False), (range(6, 7), True)):
        samples = []
        for number in numbers:
            path = tmp_path / f"{number}.png"
            Image.new("RGB", (40, 80), (40 * number, 0, 0)).save(path)
            samples.append(Sample(path, f"id{number}", f"c{number % 2}"))
        vectors = random_rows(np.random.default_rng(numbers[0]), len(samples), 4)
        add_samples(
            tmp_path / "g",
            samples,
            lambda part, v=vectors: Embeddings(tuple(part), v, "f00d"),
            with_thumbnails=kept,
        )
    assert gallery.reload()
    return tmp_path / "g"


def reds(folder: Path) -> dict[str, int | None]:
    """The red of the thumbnail of each row, rounded to tens; None where it has none."""
    gallery, found = Gallery.open(folder), dict[str, int | None]()
    for row, sample in enumerate(gallery.samples):
        image = gallery.thumbnail(row)
        red = None if image is None else Image.open(io.BytesIO(image)).getpixel((5, 5))[0]
        found[sample.identity] = None if red is None else round(red / 10) * 10
    return found


def test_each_row_has_its_own(folder: Path) -> None:
    expected = {"id0": 0, "id1": 40, "id2": 80, "id3": 120, "id4": None, "id5": None, "id6": 240}
    assert reds(folder) == expected
    gallery = Gallery.open(folder)
    image = gallery.thumbnail(1)
    gallery.remove("identity = 'id1'")
    del expected["id1"]
    assert reds(folder) == expected
    gallery.compact()
    assert reds(folder) == expected
    assert all(image not in path.read_bytes() for path in folder.iterdir())
    image = gallery.thumbnail(0)
    gallery.erase("id0")
    del expected["id0"]
    assert reds(folder) == expected
    assert all(image not in path.read_bytes() for path in folder.iterdir())
    gallery.verify()
    for path in folder.parent.glob("*.png"):
        path.unlink()
    assert reds(folder) == expected


def test_merged_rows_keep_theirs_until_they_are_erased(folder: Path, tmp_path: Path) -> None:
    expected = reds(folder)
    merge_galleries(tmp_path / "new", [folder])
    assert reds(tmp_path / "new") == expected
    path = tmp_path / "other.png"
    Image.new("RGB", (40, 80), (160, 0, 0)).save(path)
    Gallery.create(tmp_path / "grown", "f00d", 4)
    add_samples(
        tmp_path / "grown",
        [Sample(path, "other", "c1"), Sample(folder.parent / "3.png", "id3", "c1")],
        lambda part: Embeddings(tuple(part), random_rows(np.random.default_rng(9), len(part), 4), "f00d"),
    )
    merge_galleries(tmp_path / "grown", [folder])
    assert reds(tmp_path / "grown") == {**expected, "other": None, "id3": None}  # the row that was there stays as it is
    merged = Gallery.open(tmp_path / "grown")
    image = Gallery.open(folder).thumbnail(6)
    assert any(image in path.read_bytes() for path in merged.folder.iterdir())
    merged.erase("id6")
    assert all(image not in path.read_bytes() for path in merged.folder.iterdir())
    merged.verify()


def test_a_saved_gallery_keeps_those_of_its_rows(folder: Path, tmp_path: Path) -> None:
    expected = reds(folder)
    gallery = Gallery.open(folder)
    gallery.remove("identity = 'id2'")
    del expected["id2"]
    gallery.save(tmp_path / "saved")
    assert reds(tmp_path / "saved") == expected


def test_made_ones_follow_their_rows_when_erased_identities_stay_out(folder: Path) -> None:
    gallery = Gallery.open(folder)
    embeddings = gallery.embeddings
    gallery.erase("id1")
    again = Gallery.build(embeddings)
    again.save(folder, thumbnails=again.make_thumbnails())
    assert reds(folder) == {f"id{number}": 40 * number for number in (0, 2, 3, 4, 5, 6)}


def test_an_old_reader_has_its_thumbnails_although_their_files_are_gone(folder: Path) -> None:
    reader = Gallery.open(folder)
    Gallery.open(folder).compact()
    assert reader.thumbnail(6) == Gallery.open(folder).thumbnail(6)


def test_a_damaged_thumbnail_is_named(folder: Path) -> None:
    path = min(folder.glob(f"*.{THUMBNAILS}"), key=lambda one: -one.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    gallery = Gallery.open(folder)
    assert gallery.thumbnail(0)
    with pytest.raises(GalleryError, match=path.name):
        gallery.thumbnail(3)
    with pytest.raises(GalleryError, match=path.name):
        gallery.verify()


@pytest.mark.parametrize("size", [(1, 1), (2000, 10), (640, 1280), (5, 3000)])
def test_they_are_small(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = thumbnail_of(Image.fromarray(noise))
    assert len(image) <= LARGEST
    found = Image.open(io.BytesIO(image))
    assert found.width <= BOX[0]
    assert found.height <= BOX[1]
