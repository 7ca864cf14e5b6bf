"""What a gallery keeps of its rows is what measuring them anew finds, whatever happens to the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_embeddings import random_rows
from reid.errors import GalleryError
from reid.records import Embeddings, Sample
from reid.retrieval import cohort_rows, kept_cohorts
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.cohorts import measure_cohorts
from reid.retrieval.gallery import Gallery
from reid.retrieval.kept_cohorts import KeptCohorts, read_cohorts
from reid.retrieval.match_thresholds import fit_thresholds
from reid.retrieval.normalized_ranking import NormalizedGallery
from reid.retrieval.normalized_search import normalized_gallery

CAMERAS = ("door", "hall", "yard")


def crops(seed: int, count: int, cameras: int = 2) -> Embeddings:
    random = np.random.default_rng(seed)
    samples = tuple(
        Sample(Path(f"{seed}/{i}.jpg"), f"id{i % 12}", CAMERAS[i % cameras], category="person") for i in range(count)
    )
    return Embeddings(samples, random_rows(random, count, 8), "f00d")


def assert_kept(folder: Path) -> KeptCohorts:
    """Compare what a folder keeps with what measuring all of its rows anew finds."""
    kept, gallery = read_cohorts(folder), Gallery.open(folder)
    assert kept is not None
    assert kept.row_ids.tolist() == gallery.table.row_ids.tolist()
    rows = CohortRows.of_table(gallery.table, gallery.rows.vectors())
    expected = measure_cohorts(rows, rows, "csls")
    assert kept.statistics.cameras == expected.cameras
    assert kept.statistics.counts.tolist() == expected.counts.tolist()
    for name in ("mean", "deviation", "lowest"):
        np.testing.assert_allclose(getattr(kept.statistics, name), getattr(expected, name), atol=2e-5)
    assert (kept.hashes.keys.tolist(), kept.hashes.images.tolist()) == (rows.keys.tolist(), rows.images.tolist())
    fitted = fit_thresholds(rows, expected)
    np.testing.assert_allclose(kept.thresholds.scores, fitted.scores, atol=1e-6)
    return kept


@given(st.integers(0, 2**16), st.lists(st.sampled_from(["add", "remove", "erase", "compact", "build"]), max_size=4))
@settings(max_examples=8, deadline=None)
def test_after_every_change_it_is_what_a_new_measurement_finds(seed, changes):
    random = np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "g"
        Gallery.build(crops(seed, 180)).save(path)
        for number, change in enumerate(changes):
            gallery = Gallery.open(path)
            if change == "add":
                gallery.add(crops(seed + number + 1, int(random.integers(1, 9)), int(random.integers(1, 4))))
            elif change == "remove":
                gallery.remove(f"identity = 'id{random.integers(12)}'")
            elif change == "erase":
                gallery.erase(f"id{random.integers(12)}")
            elif change == "compact":
                gallery.compact()
            else:
                gallery.save(path)
            assert_kept(path)


def test_a_wrong_update_is_noticed(tmp_path, monkeypatch):
    """The comparison above refuses statistics in which the new rows are missing from the cohorts."""
    Gallery.build(crops(0, 90)).save(tmp_path)
    monkeypatch.setattr(
        kept_cohorts, "update_rows", lambda old, before, after, origin: measure_cohorts(after, before, "csls")
    )
    Gallery.open(tmp_path).add(crops(1, 30))
    with pytest.raises(AssertionError):
        assert_kept(tmp_path)


def test_files_of_an_earlier_version_have_no_hashes_of_paths(tmp_path):
    Gallery.build(crops(0, 90)).save(tmp_path / "g")
    kept = read_cohorts(tmp_path / "g")
    replace(kept, hashes=None).write(tmp_path / "old.safetensors")
    old = KeptCohorts.read(tmp_path / "old.safetensors")
    assert old.hashes is None
    table, vectors = Gallery.open(tmp_path / "g").table, np.zeros((90, 8), np.float32)
    known = replace(
        kept.hashes, row_ids=kept.hashes.row_ids[::2], keys=kept.hashes.keys[::2], images=kept.hashes.images[::2]
    )
    for hashes in (None, old.hashes, known, kept.hashes):
        rows = CohortRows.of_table(table, vectors, hashes)
        assert rows.keys.tolist() == kept.hashes.keys.tolist()
        assert rows.images.tolist() == kept.hashes.images.tolist()


@given(st.lists(st.sampled_from(["a", "..", ".", "b.jpg", "", "ä", "a b"]), max_size=5), st.booleans())
def test_the_end_of_a_path_is_that_of_pathlib(parts, is_absolute):
    path = "/" * is_absolute + "/".join(parts)
    assert cohort_rows._end_of(path) == "/".join(Path(path).parts[-2:])


def test_a_search_with_what_is_kept_answers_like_one_that_measures(tmp_path):
    Gallery.build(crops(2, 90)).save(tmp_path)
    gallery, queries = (
        Gallery.open(tmp_path),
        CohortRows.of_cameras(["door"], random_rows(np.random.default_rng(3), 1, 8)),
    )
    queries = replace(queries, cameras=np.array(["person/door"]))
    prepared = normalized_gallery(gallery)
    assert prepared.is_measured
    assert prepared.fitted is not None
    expected = NormalizedGallery.prepare(prepared.rows)
    found, measured = prepared.search(queries, 9), expected.search(queries, 9)
    assert found.ranking.rows.tolist() == measured.ranking.rows.tolist()
    np.testing.assert_allclose(found.ranking.scores, measured.ranking.scores, atol=1e-5)
    one, other = (each.thresholds(["person/door"]) for each in (prepared, expected))
    for camera in CAMERAS[:2]:
        rates = [each.false_match_rate(0.5, "person/door", f"person/{camera}") for each in (one, other)]
        assert rates[0] == pytest.approx(rates[1], abs=1e-6)


def test_a_gallery_in_memory_that_lags_behind_its_folder_is_searched_with_its_own_rows(tmp_path):
    Gallery.build(crops(4, 80)).save(tmp_path)
    reader = Gallery.open(tmp_path)
    Gallery.open(tmp_path).remove("identity = 'id3'")
    prepared = normalized_gallery(reader)
    np.testing.assert_allclose(
        prepared.toward(1).mean, NormalizedGallery.measure(prepared.rows).toward(1).mean, atol=2e-5
    )
    Gallery.open(tmp_path).add(crops(5, 10))
    fresh = Gallery.open(tmp_path)
    reader.reload()
    assert normalized_gallery(reader).statistics.counts.tolist() == normalized_gallery(fresh).statistics.counts.tolist()


def test_erased_rows_leave_no_bytes_behind(tmp_path):
    Gallery.build(crops(6, 100)).save(tmp_path)
    kept = read_cohorts(tmp_path)
    gone = [row for row, sample in enumerate(Gallery.open(tmp_path).samples) if sample.identity == "id5"]
    traces = [kept.statistics.mean[row].tobytes() for row in gone]
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert all(trace in stored for trace in traces)
    Gallery.open(tmp_path).erase("id5")
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(trace in left for trace in traces)
    assert_kept(tmp_path)


def test_a_damaged_file_is_refused_by_readers_and_written_anew_by_writers(tmp_path):
    Gallery.build(crops(7, 80)).save(tmp_path)
    (file,) = tmp_path.glob("*.cohorts.safetensors")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    gallery = Gallery.open(tmp_path)
    with pytest.raises(GalleryError, match=file.name):
        normalized_gallery(gallery)
    with pytest.raises(GalleryError, match=file.name):
        gallery.verify()
    gallery.compact()
    assert_kept(tmp_path)
    Gallery.open(tmp_path).verify()


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "some.safetensors").write_bytes(b"nothing")
    with pytest.raises(GalleryError, match="cohort"):
        KeptCohorts.read(tmp_path / "some.safetensors")


def test_where_nothing_is_kept_a_search_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_cohorts, "MOST_COMPARISONS", 0)
    Gallery.build(crops(8, 80)).save(tmp_path)
    assert read_cohorts(tmp_path) is None
    assert not normalized_gallery(Gallery.open(tmp_path)).is_measured
    monkeypatch.undo()
    Gallery.open(tmp_path).compact()  # what a gallery of an older version needs
    assert_kept(tmp_path)


def test_a_gallery_of_few_crops_keeps_nothing(tmp_path):
    Gallery.build(crops(9, 12)).save(tmp_path)
    assert read_cohorts(tmp_path) is None
    Gallery.open(tmp_path).add(crops(10, 60))
    assert_kept(tmp_path)
