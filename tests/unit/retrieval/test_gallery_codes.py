"""The short codes of a gallery folder: stored by camera, checked, and gone with the rows that they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.random_embeddings import assert_same_ranking, embeddings_of, random_rows
from reid.errors import GalleryError
from reid.retrieval import segment_writing
from reid.retrieval.exact import exact_search
from reid.retrieval.filters import parse_where, rows_where
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_header import CODES
from reid.retrieval.stores import code_scan, code_search, flat_store

ROWS, DIMENSION = 300, 16


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small galleries have codes and use them."""
    monkeypatch.setattr(segment_writing, "FEWEST_CODED", 50)
    monkeypatch.setattr(flat_store, "FEWEST_CODED", 1)
    monkeypatch.setattr(flat_store, "ROWS_PER_RANK", 0)
    monkeypatch.setattr(code_search, "has_byte_products", lambda: True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vectors = random_rows(np.random.default_rng(0), ROWS, DIMENSION)
    gallery = Gallery.build(embeddings_of(vectors).select(np.arange(200)))
    gallery.save(tmp_path / "g")
    gallery.add(embeddings_of(vectors).select(np.arange(200, ROWS)))
    return tmp_path / "g"


def codes_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*.{CODES}"))


def check_answers(gallery: Gallery, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the answers of codes with the exact search; the codes must have been asked."""
    asked = []
    find = flat_store.find_by_codes
    monkeypatch.setattr(flat_store, "find_by_codes", lambda *given: (asked.append(1), find(*given))[1])
    keep = rows_where(parse_where(where), gallery.table)
    for count in (1, 20):
        queries = random_rows(np.random.default_rng(count), count, DIMENSION)
        found = gallery.search(queries, 7, fingerprint="f00d", where=where)
        expected = exact_search(queries, gallery.embeddings.vectors, 7, np.tile(keep, (count, 1)))
        assert_same_ranking(found, expected)
    assert asked


@pytest.mark.parametrize("where", ["camera <> 'c1'", "modality = 'infrared'", "identity LIKE 'id%'"])
def test_filtered_answers_are_exact(folder: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(codes_files(folder)) == 2
    check_answers(Gallery.open(folder), where, monkeypatch)


def test_a_filter_by_camera_reads_a_few_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, sizes = Gallery.open(folder), list[int]()
    pieces = code_scan._pieces
    monkeypatch.setattr(
        code_scan, "_pieces", lambda *given: (sizes.extend(p.size for p in pieces(*given)), pieces(*given))[1]
    )
    query = random_rows(np.random.default_rng(5), 1, DIMENSION)
    gallery.search(query, 7, fingerprint="f00d", where="camera = 'c1'")
    assert len(sizes) == 4  # both modalities of two segments
    assert sum(sizes) == ROWS / 3


def test_removed_rows_leave_the_codes_with_compaction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = Gallery.open(folder)
    before = codes_files(folder)
    gallery.remove("identity = 'id3'")
    check_answers(gallery, "camera <> 'c1'", monkeypatch)
    assert codes_files(folder) == before
    gallery.compact()
    (after,) = codes_files(folder)
    assert after not in before
    assert len(np.load(after)) == len(gallery) + 12
    check_answers(Gallery.open(folder), "camera <> 'c1'", monkeypatch)
    gallery.erase("id4")
    assert [len(np.load(path)) for path in codes_files(folder)] == [len(gallery) + 12]
    gallery.verify()


def test_damaged_codes_are_named(folder: Path) -> None:
    path = codes_files(folder)[1]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    query = random_rows(np.random.default_rng(5), 1, DIMENSION)
    gallery = Gallery.open(folder)
    with pytest.raises(GalleryError, match=path.name):
        gallery.search(query, 7, fingerprint="f00d")
    with pytest.raises(GalleryError, match=path.name):
        gallery.verify()
    path.write_bytes(content[:-1])
    with pytest.raises(GalleryError, match=path.name):
        Gallery.open(folder)


def test_a_gallery_without_codes_answers_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_writing, "FEWEST_CODED", 10**9)
    Gallery.build(embeddings_of(random_rows(np.random.default_rng(0), ROWS, DIMENSION))).save(tmp_path)
    assert not codes_files(tmp_path)
    check_answers(Gallery.open(tmp_path), "camera <> 'c1'", monkeypatch)


def test_an_old_reader_answers_although_its_files_are_gone(folder: Path) -> None:
    reader, gallery = Gallery.open(folder), Gallery.open(folder)
    query = random_rows(np.random.default_rng(5), 1, DIMENSION)
    expected = gallery.search(query, 7, fingerprint="f00d")
    before = codes_files(folder)
    gallery.compact()
    assert not any(path.exists() for path in before)
    found = reader.search(query, 7, fingerprint="f00d")
    assert_same_ranking(found, expected)
