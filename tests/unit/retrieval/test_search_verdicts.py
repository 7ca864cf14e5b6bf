"""Searching with one image in a gallery that is large enough to normalize scores and to judge answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reid.errors import DataError
from reid.records import Embeddings, Sample
from reid.retrieval import search
from reid.retrieval.gallery import Gallery
from reid.retrieval.search import nobody_found, search_image

PEOPLE, CAMERAS, DIMENSION = 150, 3, 48


class FixedNetwork:
    """Stands for a checkpoint; ``embed_image`` is replaced by the vector of the test."""

    fingerprint = "f00d"


@pytest.fixture(scope="module")
def site():
    random = np.random.default_rng(0)
    people, offsets = random.standard_normal((PEOPLE, DIMENSION)), random.standard_normal((CAMERAS, DIMENSION))

    def crop(person, camera):
        vector = person + 0.8 * offsets[camera] + 0.3 * random.standard_normal(DIMENSION)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    pairs = [(i, c) for i in range(PEOPLE) for c in range(CAMERAS)]
    samples = tuple(Sample(Path(f"{i}-{c}.jpg"), f"p{i}", f"c{c}") for i, c in pairs)
    gallery = Gallery.build(Embeddings(samples, np.stack([crop(people[i], c) for i, c in pairs]), "f00d"))
    return gallery, people, crop, random


def ask(monkeypatch, site, vector, **options):
    monkeypatch.setattr(search, "embed_image", lambda *_, **__: vector[None])
    return search_image(FixedNetwork(), site[0], Path("query.jpg"), camera="c0", cross_camera=True, **options)


def test_a_known_person_is_the_same_and_somebody_else_is_nobody(monkeypatch, site):
    _, people, crop, random = site
    answers = ask(monkeypatch, site, crop(people[7], 0), k=5)
    assert [answer.sample.identity for answer in answers[:2]] == ["p7", "p7"]
    assert [str(answer.match.verdict) for answer in answers] == ["same", "same", "other", "other", "other"]
    assert not nobody_found(answers)
    normalized = [answer.normalized for answer in answers]
    assert normalized == sorted(normalized, reverse=True)
    assert all(-1 <= answer.score <= 1 for answer in answers)
    rates = [answer.match.false_match_rate for answer in answers]
    assert rates[1] < 1e-4 < 1e-2 < rates[2]
    strangers = [ask(monkeypatch, site, crop(random.standard_normal(DIMENSION), 0), k=3) for _ in range(20)]
    assert sum(nobody_found(found) for found in strangers) >= 10
    assert all(str(found[0].match.verdict) != "same" for found in strangers)


def test_the_rate_of_the_verdict_is_chosen_and_plain_scores_are_not_judged(monkeypatch, site):
    _, people, crop, _ = site
    vector = crop(people[3], 0)
    answers = ask(monkeypatch, site, vector, k=3, same_rate=1e-30)
    assert {str(answer.match.verdict) for answer in answers} <= {"undecided", "other"}
    plain = ask(monkeypatch, site, vector, k=3, score_norm="none")
    assert [(answer.normalized, answer.match) for answer in plain] == [(None, None)] * 3
    assert not nobody_found(plain)
    with pytest.raises(DataError, match="zscore"):
        ask(monkeypatch, site, vector, score_norm="zscore")
