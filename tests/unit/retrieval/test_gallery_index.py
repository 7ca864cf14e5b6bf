"""The approximate index of a gallery folder: searches use it, filters stay exact, and it goes when rows must go."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.random_embeddings import assert_same_ranking, embeddings_of, random_rows
from reid.errors import ConfigError, GalleryError
from reid.records import Embeddings
from reid.retrieval import stored_gallery
from reid.retrieval.exact import exact_search
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_index import index_gallery
from reid.retrieval.stores.indexed_store import IndexedStore
from reid.retrieval.upkeep import compact_gallery, verify_gallery


@pytest.fixture
def folder(tmp_path):
    vectors = random_rows(np.random.default_rng(0), 400, 16)
    Gallery.build(embeddings_of(vectors)).save(tmp_path / "g")
    return tmp_path / "g"


def index_files(folder):
    return [path for path in folder.iterdir() if path.name.endswith(".index")]


def test_a_search_uses_the_index_and_a_filter_does_not(folder, monkeypatch):
    vectors = random_rows(np.random.default_rng(0), 400, 16)
    report = index_gallery(folder, "hnsw", 0.9)
    assert (report.index_kind, report.rows) == ("hnsw", 400)
    gallery = Gallery.open(folder)
    assert gallery.info()["index_kind"] == "hnsw"
    assert gallery.search(vectors[:5], 1, fingerprint="f00d").rows[:, 0].tolist() == list(range(5))
    assert isinstance(gallery._rows.store, IndexedStore)
    keep = np.arange(400) % 3 == 1
    found = gallery.search(vectors[:9], 30, fingerprint="f00d", where="camera = 'c1'")
    assert_same_ranking(found, exact_search(vectors[:9], vectors, 30, np.tile(keep, (9, 1))))


def test_rows_that_come_later_are_found_and_removed_rows_are_not(folder):
    index_gallery(folder, "fp16")
    more = embeddings_of(random_rows(np.random.default_rng(5), 500, 16))
    gallery = Gallery.open(folder)
    gallery.add(Embeddings(more.samples[400:], more.vectors[400:], "f00d"))
    assert gallery.search(more.vectors[450:451], 1, fingerprint="f00d").rows[0, 0] == 450
    assert gallery.remove("path LIKE '%450.jpg'") == 1
    found = gallery.search(more.vectors[450:451], 1, fingerprint="f00d")
    assert str(gallery.samples[found.rows[0, 0]].path) != "crops/450.jpg"
    verify_gallery(folder)


def test_compaction_builds_an_index_again_that_held_removed_rows(folder):
    index_gallery(folder, "fp16")
    (first,) = index_files(folder)
    compact_gallery(folder)
    assert index_files(folder) == [first]  # nothing was removed
    Gallery.open(folder).remove("camera = 'c1'")
    compact_gallery(folder)
    (again,) = index_files(folder)
    assert again != first
    store = Gallery.open(folder)._rows.store
    assert isinstance(store, IndexedStore)
    assert store._index.covered.row_ids.tolist() == [i for i in range(400) if i % 3 != 1]
    verify_gallery(folder)


def test_an_erasure_removes_the_index_and_searches_are_exact(folder):
    index_gallery(folder, "fp16")
    gallery = Gallery.open(folder)
    gallery.erase("id3")
    assert index_files(folder) == []
    assert Gallery.open(folder).info()["index_kind"] == "flat"


def test_a_large_gallery_is_compacted_to_parts_and_an_erasure_writes_one_of_them(folder, monkeypatch):
    monkeypatch.setattr(stored_gallery, "LARGEST_SEGMENT", 150)
    monkeypatch.setattr(stored_gallery, "MOST_PARTS", 3)
    gallery = Gallery.open(folder)
    gallery.remove("camera = 'c1'")
    gallery.compact()
    before = sorted(path.name for path in folder.glob("*.vectors.npy"))
    assert [len(segment.table) for segment in gallery.rows.segments] == [150, 267 - 150]
    gallery.compact()
    assert sorted(path.name for path in folder.glob("*.vectors.npy")) == before
    numbers = [gallery.samples[0].path, gallery.samples[266].path]
    gallery.remove(f"path = '{numbers[1]}'")
    gallery.erase(gallery.samples[0].identity)
    assert len(Gallery.open(folder).rows.segments) == 2
    verify_gallery(folder)


def test_an_index_is_replaced_or_removed(folder):
    index_gallery(folder, "sq8")
    first = index_files(folder)
    index_gallery(folder, "fp16")
    assert len(index_files(folder)) == 1
    assert index_files(folder) != first
    assert index_gallery(folder, "auto").index_kind == "flat"
    assert index_files(folder) == []


def test_a_damaged_index_is_named_and_wrong_settings_are_refused(folder):
    index_gallery(folder, "fp16")
    (path,) = index_files(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(GalleryError, match=path.name):
        verify_gallery(folder)
    with pytest.raises(GalleryError, match=path.name):
        Gallery.open(folder).search(np.eye(16, dtype=np.float32)[:1], 1, fingerprint="f00d")
    for wrong in (("hsnw", 0.9), ("hnsw", 0.0), ("hnsw", 1.5)):
        with pytest.raises(ConfigError):
            index_gallery(folder, *wrong)
