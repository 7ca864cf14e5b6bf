"""Readers go on while a writer adds, removes and compacts: no answer is wrong, and none shows a row that is gone.

The writer works for some rounds; ``REID_READER_ROUNDS=600`` lets it work for minutes.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from helpers.random_embeddings import random_rows
from reid.errors import GalleryError
from reid.records import Embeddings, FloatArray, Sample
from reid.retrieval.exact import score_rows
from reid.retrieval.gallery import Gallery
from reid.retrieval.storage import write_gallery
from reid.retrieval.stored_gallery import MOST_SEGMENTS

READERS, DIMENSION = 8, 8
ROUNDS = int(os.environ.get("REID_READER_ROUNDS", "12"))


def vector_of(number: int) -> FloatArray:
    return random_rows(np.random.default_rng(number), 1, DIMENSION)[0]


def rows_of(numbers: range) -> Embeddings:
    samples = tuple(Sample(Path(f"/crops/{n}.jpg"), f"p{n}", f"c{n % 3}") for n in numbers)
    return Embeddings(samples, np.stack([vector_of(n) for n in numbers]), "f00d")


def test_eight_readers_and_a_writer(tmp_path: Path) -> None:
    Gallery.build(rows_of(range(20))).save(tmp_path)
    done, gone = Event(), set[int]()

    def write() -> None:
        try:
            writer = Gallery.open(tmp_path)
            for number in range(ROUNDS):
                writer.add(rows_of(range(20 + 5 * number, 25 + 5 * number)))
                writer.remove(f"identity = 'p{3 * number}'", forget=False)
                gone.add(3 * number)
                if number % 4 == 3:
                    writer.compact()
        finally:
            done.set()

    def read(seed: int) -> int:
        gallery, query, searches = Gallery.open(tmp_path), random_rows(np.random.default_rng(seed), 1, DIMENSION), 0
        while not done.is_set() or not searches:
            if seed % 2:
                gallery.reload()
            before = set(gone)
            found = gallery.search(query, 100, fingerprint="f00d")
            numbers = [int(gallery.samples[row].path.stem) for row, _ in found.answers(0)]
            assert not before & set(numbers)
            scores = score_rows(query[0], np.stack([vector_of(n) for n in numbers]))
            np.testing.assert_array_equal(found.scores[0, : found.counts[0]], scores)
            searches += 1
        return searches

    with ThreadPoolExecutor(READERS + 1) as pool:
        readers = [pool.submit(read, seed) for seed in range(READERS)]
        pool.submit(write).result()
        assert all(reader.result() for reader in readers)
    left = {int(sample.path.stem) for sample in Gallery.open(tmp_path).samples}
    assert left == set(range(20 + 5 * ROUNDS)) - gone


def test_many_small_additions_stay_few_segments(tmp_path: Path) -> None:
    gallery = Gallery.create(tmp_path, "f00d", DIMENSION)
    for number in range(MOST_SEGMENTS + 4):
        gallery.add(rows_of(range(number, number + 1)))
    assert gallery.info()["segments"] < MOST_SEGMENTS
    assert [int(sample.path.stem) for sample in gallery.samples] == list(range(MOST_SEGMENTS + 4))
    query = random_rows(np.random.default_rng(3), 1, DIMENSION)
    found = gallery.search(query, 3, fingerprint="f00d")
    scores = score_rows(query[0], np.stack([vector_of(n) for n in range(MOST_SEGMENTS + 4)]))
    assert found.rows[0].tolist() == np.argsort(-scores, kind="stable")[:3].tolist()


@pytest.mark.parametrize("broken", ["write", "sha"])
def test_a_full_disk_leaves_the_gallery_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    Gallery.build(rows_of(range(9))).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    name = "reid.retrieval.segment_writing.write_vectors" if broken == "write" else "reid.retrieval.storage.sha256_of"
    monkeypatch.setattr(name, full)
    for change in (
        lambda: Gallery.open(tmp_path).add(rows_of(range(9, 12))),
        lambda: Gallery.open(tmp_path).erase("p3"),
    ):
        with pytest.raises(GalleryError, match="No space left"):
            change()
    monkeypatch.undo()
    assert len(Gallery.open(tmp_path)) in (8, 9)
    kept = {name: content for name, content in before.items() if name.endswith((".npy", ".parquet"))}
    assert all((tmp_path / name).read_bytes() == content for name, content in kept.items())
    with write_gallery(tmp_path) as writer:
        assert writer.sweep() == []
    Gallery.open(tmp_path).verify()
