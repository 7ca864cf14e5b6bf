"""The map shows the same crops before and after the mean of each camera is removed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.person_crops import people
from reid.app.camera_overview import overview_of
from reid.app.embedding_map import EmbeddingMap, drawn_rows, maps_of
from reid.app.opened_gallery import open_served_gallery
from reid.app.person_cards import decide, pairs_to_ask, persons_by_size
from reid.app.projections import MISSING, PROJECTIONS, NotDrawnYetError, principal_components, project, project_later
from reid.app.served_data import ServedData
from reid.errors import ConfigError, DataError
from reid.records import FloatArray
from reid.retrieval.gallery import Gallery


@pytest.fixture
def data(tmp_path: Path) -> ServedData:
    Gallery.build(people()).save(tmp_path / "people")
    return open_served_gallery(tmp_path / "people")


def test_centering_removes_what_cameras_explain(data: ServedData) -> None:
    before, after = maps_of(data, drawn_rows(data.main, "person"), compare=False)
    assert before.camera_share > 0.05
    assert after.camera_share < 0.01
    for drawn in (before, after):
        assert drawn.points.shape == (96, 2)
        assert drawn.points.min() == 0
        assert drawn.points.max() == pytest.approx(1)
    assert maps_of(data, drawn_rows(data.main, "person"), compare=True) == []
    with pytest.raises(DataError, match="turtle"):
        drawn_rows(data.main, "turtle")


def test_principal_components_are_those_of_the_covariance() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    points = principal_components(vectors.astype(np.float32))
    values = np.sort(np.linalg.eigvalsh(np.cov(vectors.T)))[::-1][:2]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), values, rtol=1e-4)
    assert abs(float(np.corrcoef(points.T)[0, 1])) < 1e-4


class CountingUmap:
    """Stands for the package umap: a projection whose points tell how often and with what it was called."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def UMAP(self, **options: Any) -> CountingUmap:
        self.calls.append(options)
        return self

    def fit_transform(self, vectors: FloatArray) -> FloatArray:
        return vectors[:, :2] * 3


def drawn_maps(data: ServedData) -> list[EmbeddingMap]:
    """Ask for the maps of UMAP until they are there, as the page does."""
    for _ in range(1000):
        try:
            return maps_of(data, drawn_rows(data.main, "person"), compare=False, projection="umap")
        except NotDrawnYetError:
            time.sleep(0.01)
    pytest.fail("the maps are never there")


def test_umap_is_an_extra(data: ServedData, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn_rows(data.main, "person")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError) as caught:
        maps_of(data, rows, compare=False, projection="umap")
    assert str(caught.value) == MISSING
    assert "\n" not in MISSING
    package = CountingUmap()
    monkeypatch.setitem(sys.modules, "umap", package)
    with pytest.raises(NotDrawnYetError):
        maps_of(data, rows, compare=False, projection="umap")
    before, after = drawn_maps(data)
    vectors = data.main.gallery.rows.vectors_at(rows)[:, :2]
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    np.testing.assert_allclose(before.points, (vectors - low) / (high - low), atol=1e-5)
    assert len(package.calls) == 2
    assert package.calls[0]["n_components"] == 2
    assert package.calls[0]["metric"] == "cosine"
    assert "random_state" in package.calls[0], "the same crops give the same map"
    maps_of(data, rows, compare=False, projection="umap")
    assert len(package.calls) == 2, "another colour computes nothing"
    assert before.camera_share > after.camera_share
    with pytest.raises(DataError, match="UMAP needs"):
        project(np.eye(4, dtype=np.float32), "umap")


def test_what_fails_in_the_background_is_told_to_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    package = CountingUmap()
    monkeypatch.setattr(package, "fit_transform", lambda _vectors: 1 / 0)
    monkeypatch.setitem(sys.modules, "umap", package)
    vectors = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
    for _ in range(1000):
        try:
            project_later(vectors, "umap")
        except NotDrawnYetError:
            time.sleep(0.01)
        except ZeroDivisionError:
            break
    assert len(package.calls) == 1
    with pytest.raises(NotDrawnYetError):
        project_later(vectors, "umap")  # it is tried again


def test_an_unknown_projection_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="umap"):
        project(np.eye(4, dtype=np.float32), "tsne")
    assert set(PROJECTIONS) == {"pca", "umap"}


def test_cameras_are_described_from_stored_vectors(data: ServedData) -> None:
    cameras, similarity = overview_of(data.main)
    assert [(camera.name, camera.rows) for camera in cameras] == [("door", 48), ("yard", 48)]
    assert cameras[0].neighbours[0][0] == "yard"
    assert similarity.shape == (2, 2)
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    assert cameras[0].is_known is None, "this gallery holds no network"


def test_pairs_that_somebody_judged_are_not_asked_again(tmp_path: Path) -> None:
    from reid.adaptation.identify import identify

    Gallery.build(people(noise=1.2)).save(tmp_path / "people")
    state = identify(tmp_path / "people").state
    assert persons_by_size(state)
    first, second, score = pairs_to_ask(state)[0]
    assert -1 <= score <= 1
    decide(tmp_path / "people", "different", [first, second], [], "")
    from reid.retrieval.persons.person_state import read_persons

    later = pairs_to_ask(read_persons(tmp_path / "people"), 100)
    assert {first, second} not in [{one, other} for one, other, _ in later]
