"""Crops are grouped without labels."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.person_crops import people, unit
from reid.adaptation.person_groups import METHODS, confidence_of, group_crops, join_groups
from reid.errors import DataError
from reid.evaluation.grouping import score_grouping
from reid.records import Embeddings
from reid.retrieval.score_normalization import normalize_among


def grouped(embeddings: Embeddings, method: str = "auto", rate: float = 1e-3):
    cameras = [sample.camera for sample in embeddings.samples]
    groups = ["person visible"] * len(embeddings)
    return group_crops(embeddings.vectors, cameras, groups, method=method, false_match_rate=rate)


@pytest.mark.parametrize("method", METHODS)
def test_people_who_look_different_are_found(method: str) -> None:
    embeddings = people()
    found = grouped(embeddings, method)
    scores = score_grouping(found.labels + 1, [sample.identity for sample in embeddings.samples])
    assert scores is not None
    assert scores.pairwise_precision > 0.95
    assert scores.pairwise_recall > 0.4
    assert found.figures[0].undecided == int((found.labels < 0).sum())


def test_one_crop_in_each_camera_is_joined_with_its_neighbour() -> None:
    embeddings = people(60, crops=1)
    found = grouped(embeddings, "mutual")
    scores = score_grouping(found.labels + 1, [sample.identity for sample in embeddings.samples])
    assert scores is not None
    assert scores.pairwise_f1 > 0.9


def test_crops_of_another_category_or_light_are_grouped_by_themselves() -> None:
    embeddings = people(8)
    kinds = ["person visible" if i % 2 else "person infrared" for i in range(len(embeddings))]
    found = group_crops(embeddings.vectors, [""] * len(embeddings), kinds)
    for label in range(int(found.labels.max()) + 1):
        assert len({kinds[row] for row in np.flatnonzero(found.labels == label)}) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_few_crops_are_no_error(count: int) -> None:
    embeddings = people(5, crops=1).select(np.arange(count))
    assert grouped(embeddings).labels.shape == (count,)


def test_crops_that_are_all_alike_are_no_error() -> None:
    same = Embeddings(people(8).samples, unit(np.ones((64, 32))), "f00d")
    assert grouped(same).labels.shape == (64,)


def test_groups_only_grow_by_joining() -> None:
    embeddings = people(20, noise=0.5)
    cameras = np.array([sample.camera == "door" for sample in embeddings.samples]).astype(np.int64)
    start = np.repeat(np.arange(20), 8)
    start[::3] = -1
    joined = join_groups(normalize_among(embeddings.vectors, cameras), cameras, start, 1e-3)
    for label in range(20):
        assert len(set(joined[start == label].tolist())) == 1


def test_wrong_values_are_refused() -> None:
    with pytest.raises(DataError):
        grouped(people(4), "nonsense")
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(DataError):
            grouped(people(4), rate=rate)
    with pytest.raises(DataError):
        group_crops(people(4).vectors, ["door"], ["person"])


def test_a_crop_between_two_persons_is_less_sure() -> None:
    vectors = unit(np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0.1, 1, 0], [1, 0.9, 0]]))
    confidence = confidence_of(np.array([1, 1, 2, 2, 1]), vectors, ["person"] * 5)
    assert confidence[4] == min(confidence)
    assert confidence[4] == pytest.approx(0.5, abs=0.06)
    assert confidence_of(np.array([1, 0, 2, 2, 2]), vectors, ["person"] * 5)[:2].tolist() == [0, 0]
