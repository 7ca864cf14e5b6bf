"""Persons answer with their best crops, and several images are one query."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from helpers.person_crops import people, unit
from reid.adaptation.identify import identify
from reid.errors import DataError, GalleryError
from reid.retrieval.gallery import Gallery
from reid.retrieval.person_search import embed_together, label_persons, search_persons


@pytest.mark.parametrize("score_norm", ["none", "csls"])
def test_each_person_answers_once_with_its_best_crop(tmp_path: Path, score_norm: str) -> None:
    Gallery.build(people(10)).save(tmp_path)
    identify(tmp_path)
    gallery = Gallery.open(tmp_path)
    state = label_persons(gallery)
    query = unit(gallery.embeddings.vectors[:3].mean(axis=0, keepdims=True))
    found = search_persons(gallery, query, fingerprint="f00d", camera="door", k=4, score_norm=score_norm)
    persons = [int(state.persons[answer.row]) for answer in found]
    assert len(set(persons)) == len(found) == 4
    assert persons[0] == int(state.persons[0])
    scores = gallery.embeddings.vectors @ query[0]
    if score_norm == "none":
        for person, answer in zip(persons, found, strict=True):
            assert answer.score == pytest.approx(scores[state.persons == person].max(), abs=1e-5)
    with pytest.raises(GalleryError):
        search_persons(gallery, query, fingerprint="f00d", category="vehicle")


def test_persons_are_a_column_for_filters(tmp_path: Path) -> None:
    Gallery.build(people(10)).save(tmp_path)
    gallery = Gallery.open(tmp_path)
    identify(tmp_path)
    state = label_persons(gallery)
    query = gallery.embeddings.vectors[:1]
    ranking = gallery.search(query, 80, fingerprint="f00d", where="person = 'person-3'")
    assert sorted(row for row, _ in ranking.answers(0)) == np.flatnonzero(state.persons == 3).tolist()


def test_several_images_are_the_mean_of_their_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(np.array([[1, 0], [0, 1], [1, 1]]))
    asked: list[str] = []

    def embed(checkpoint: object, image: Path, *, camera: str, **_: Any) -> np.ndarray:
        asked.append(camera)
        return vectors[int(image.stem)][None]

    monkeypatch.setattr("reid.retrieval.person_search.embed_image", embed)
    images = [Path("0.jpg"), Path("1.jpg")]
    together = embed_together(cast(Any, None), images, ["door"])
    np.testing.assert_allclose(together, vectors[2:], atol=1e-6)
    embed_together(cast(Any, None), images, ["door", "yard"])
    assert asked == ["door", "door", "door", "yard"]
    for wrong in ([], ["a", "b", "c"]):
        with pytest.raises(DataError):
            embed_together(cast(Any, None), images, wrong)
