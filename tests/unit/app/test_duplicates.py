"""Duplicates are found by the content of files and by nearly equal embeddings, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from helpers.person_crops import people, unit
from reid.app import duplicates
from reid.app.duplicates import NEAR, SAME, find_duplicates
from reid.records import Embeddings, Sample
from reid.retrieval.gallery import Gallery
from reid.retrieval.growth import add_samples


def nearly(vectors: np.ndarray, score: float) -> np.ndarray:
    """Return vectors of unit length whose products with the given ones are ``score``."""
    other = np.random.default_rng(1).standard_normal(vectors.shape)
    other = unit(other - (other * vectors).sum(axis=1, keepdims=True) * vectors)
    return unit(score * vectors + np.sqrt(1 - score**2) * other)


def test_near_embeddings_of_one_camera_are_duplicates() -> None:
    """Row 0 has two near copies that form one group; a less similar copy and one of another camera count not."""
    drawn = people(6)
    first, vector = drawn.samples[0], drawn.vectors[:1]
    copies = [nearly(vector, 0.9995), nearly(vector, 0.9998), nearly(vector, 0.99), vector]
    samples = [replace(first, path=Path(f"copy-{n}.jpg"), camera="yard" if n == 3 else first.camera) for n in range(4)]
    rows = Embeddings((*drawn.samples, *samples), np.concatenate([drawn.vectors, *copies]).astype(np.float32), "f00d")
    found = find_duplicates(Gallery.build(rows))
    count = len(drawn.samples)
    assert [(one.kind, one.rows) for one in found] == [(NEAR, (0, count, count + 1))]
    assert 0.9994 < found[0].score < 0.9999
    assert find_duplicates(Gallery.build(drawn)) == []


def test_the_same_file_is_one_image_in_any_camera(tmp_path: Path, monkeypatch: object) -> None:
    drawn = people(2, crops=2)
    samples = []
    for number, sample in enumerate(drawn.samples):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(b"same" if number in (1, 5) else str(number).encode())
        samples.append(Sample(path, camera=sample.camera))
    vectors = {sample.path: drawn.vectors[number] for number, sample in enumerate(samples)}

    def embed(chosen: object) -> Embeddings:
        rows = tuple(chosen)  # type: ignore[call-overload]
        return Embeddings(rows, np.stack([vectors[one.path] for one in rows]), "f00d")

    Gallery.create(tmp_path / "crops", "f00d", drawn.vectors.shape[1])
    add_samples(tmp_path / "crops", samples, embed)
    gallery = Gallery.open(tmp_path / "crops")
    assert [(one.kind, one.rows) for one in find_duplicates(gallery)] == [(SAME, (1, 5))]
    monkeypatch.setattr(duplicates, "COMPARED_ROWS", 3)  # type: ignore[attr-defined]
    assert [one.kind for one in find_duplicates(gallery)] == [SAME], "in large galleries as well"
