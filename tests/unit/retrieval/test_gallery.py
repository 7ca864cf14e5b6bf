"""The FAISS gallery: exact answers, private and durable folders, erasure."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from reid.errors import DataError, GalleryError, WeightsError
from reid.records import Embeddings, Modality, Sample, Split
from reid.retrieval import gallery as module
from reid.retrieval import storage
from reid.retrieval.exact import exact_search
from reid.retrieval.gallery import Gallery


def unit(random, rows, dimension):
    vectors = random.standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def lattice(random, rows):
    """Unit vectors with exact inner products: 17 different scores, so ties cross every border."""
    return random.choice(np.float32([-0.25, 0.25]), size=(rows, 16))


def embeddings(vectors, identities=7):
    samples = tuple(
        Sample(
            Path("crops") / f"{i}.jpg",
            f"id{i % identities}",
            f"c{i % 3}",
            Modality.INFRARED if i % 2 else Modality.VISIBLE,
            "vehicle",
            Split.QUERY if i % 5 == 0 else Split.GALLERY,
            datetime(2024, 5, 1, 12, i % 60, tzinfo=UTC if i % 4 else None) if i % 3 else None,
        )
        for i in range(len(vectors))
    )
    return Embeddings(samples, vectors, "f00d")


def assert_same(ranking, expected):
    np.testing.assert_array_equal(ranking.rows, expected.rows)
    np.testing.assert_array_equal(ranking.scores, expected.scores)
    np.testing.assert_array_equal(ranking.counts, expected.counts)


@pytest.mark.parametrize("queries", [1, 5, 40])  # one pair at a time, and through a matrix product
@pytest.mark.parametrize("k", [1, 10, 150, 1000])
@pytest.mark.parametrize("kept", [None, 0.9, 0.1])
@pytest.mark.parametrize("make", [lambda random, n: unit(random, n, 48), lattice], ids=["random", "lattice"])
def test_equals_the_exact_search(make, queries, k, kept):
    random = np.random.default_rng(k + queries)
    vectors, asked = make(random, 700), make(random, queries)
    keep = None if kept is None else random.random(700) < kept
    ranking = Gallery.build(embeddings(vectors)).search(asked, k, keep=keep, fingerprint="f00d")
    expected = exact_search(asked, vectors, k, None if keep is None else np.tile(keep, (queries, 1)))
    places = min(k, 700 if keep is None else int(keep.sum()))
    assert ranking.rows.shape == (queries, places)
    assert ranking.counts.tolist() == [places] * queries
    np.testing.assert_array_equal(ranking.rows, expected.rows[:, :places])
    np.testing.assert_array_equal(ranking.scores, expected.scores[:, :places])


def test_a_collapsed_gallery_answers_with_its_first_rows():
    vectors = np.tile(unit(np.random.default_rng(0), 1, 100), (500, 1))
    ranking = Gallery.build(embeddings(vectors)).search(vectors[:3], 4, fingerprint="f00d")
    assert ranking.rows.tolist() == [[0, 1, 2, 3]] * 3


def test_batches_of_copies_are_merged(monkeypatch):
    random = np.random.default_rng(3)
    vectors, asked, keep = unit(random, 600, 16), unit(random, 30, 16), random.random(600) < 0.7
    monkeypatch.setattr(module, "GATHER_BYTES", 4 * 16 * 50)
    ranking = Gallery.build(embeddings(vectors)).search(asked, 20, keep=keep, fingerprint="f00d")
    assert_same(ranking, exact_search(asked, vectors, 20, np.tile(keep, (30, 1))))


def test_no_row_may_answer():
    gallery = Gallery.build(embeddings(unit(np.random.default_rng(0), 9, 4)))
    ranking = gallery.search(np.float32([[1, 0, 0, 0]]), 3, keep=np.zeros(9, bool), fingerprint="f00d")
    assert (ranking.counts.tolist(), ranking.answers(0)) == ([0], [])


@pytest.mark.parametrize(
    ("vectors", "changes", "error", "message"),
    [
        (np.ones((1, 4), np.float32) / 2, {"fingerprint": "beef"}, GalleryError, 'by "beef" and the gallery by "f00d"'),
        (np.ones((1, 5), np.float32), {}, DataError, r"float32 queries \(Q, 4\), got float32 \(1, 5\)"),
        (np.ones((1, 4)), {}, DataError, "got float64"),
        (np.ones(4, np.float32), {}, DataError, r"got float32 \(4,\)"),
        (np.full((1, 4), np.nan, np.float32), {}, DataError, "NaN"),
        (np.ones((1, 4), np.float32), {"k": 0}, DataError, "k of at least 1"),
        (np.ones((1, 4), np.float32), {"keep": np.ones(8, bool)}, DataError, r"keep \(9,\) bool"),
        (np.ones((1, 4), np.float32), {"keep": np.ones(9, int)}, DataError, r"keep \(9,\) bool, got int64"),
    ],
)
def test_bad_queries(vectors, changes, error, message):
    gallery = Gallery.build(embeddings(unit(np.random.default_rng(0), 9, 4)))
    with pytest.raises(error, match=message):
        gallery.search(vectors, **{"k": 3, "fingerprint": "f00d", **changes})


def test_nothing_to_build():
    with pytest.raises(GalleryError, match="no embeddings"):
        Gallery.build(Embeddings((), np.zeros((0, 4), np.float32), "f00d"))


@pytest.fixture
def saved(tmp_path):
    data = embeddings(unit(np.random.default_rng(8), 70, 12))
    Gallery.build(data).save(tmp_path / "g")
    return data, tmp_path / "g"


def test_opens_as_it_was_saved(saved):
    data, folder = saved
    gallery = Gallery.open(folder)
    assert gallery.samples == data.samples
    assert (gallery.fingerprint, gallery.dimension, len(gallery)) == ("f00d", 12, 70)
    np.testing.assert_array_equal(gallery.embeddings.vectors, data.vectors)
    assert_same(gallery.search(data.vectors, 9, fingerprint="f00d"), exact_search(data.vectors, data.vectors, 9))


def test_only_the_owner_may_look(tmp_path):
    (tmp_path / "g").mkdir()  # an empty folder that was there is closed, too
    (tmp_path / "g").chmod(0o755)
    before = os.umask(0)
    try:
        Gallery.build(embeddings(unit(np.random.default_rng(0), 5, 4))).save(tmp_path / "g")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "g").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "g").iterdir()} == {0o600}


def test_saving_replaces_and_leaves_nothing_behind(saved):
    _, folder = saved
    old = {path.name for path in folder.iterdir()}
    other = embeddings(unit(np.random.default_rng(1), 5, 12))
    Gallery.build(other).save(folder)
    assert Gallery.open(folder).samples == other.samples
    new = {path.name for path in folder.iterdir()}
    assert len(new) == len(old) == 3
    assert new & old == {"header.json"}


def test_a_stopped_save_leaves_the_old_gallery(saved, monkeypatch):
    data, folder = saved
    calls = []

    def full(index, path):
        calls.append(path)
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.faiss, "write_index", full)
    with pytest.raises(GalleryError, match=r"cannot be written \(No space left on device\)"):
        Gallery.build(embeddings(unit(np.random.default_rng(1), 5, 12))).save(folder)
    assert calls
    assert Gallery.open(folder).samples == data.samples
    assert len(list(folder.iterdir())) == 3


def test_folders_of_others_are_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    tmp_path.chmod(0o755)
    with pytest.raises(GalleryError, match=r'holds "thesis\.tex" and is no gallery'):
        Gallery.build(embeddings(unit(np.random.default_rng(1), 5, 4))).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def edit(folder, **changes):
    path = folder / "header.json"
    header = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in header.items() if value is not None}))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "no header": lambda folder: (folder / "header.json").unlink(),
    "half a header": lambda folder: (folder / "header.json").write_text('{"format": "reid-gal'),
    "binary header": lambda folder: (folder / "header.json").write_bytes(b"\xff\xfe\x00"),
    "a list as header": lambda folder: (folder / "header.json").write_text("[1]"),
    "another program's header": lambda folder: edit(folder, format="other"),
    "a later version": lambda folder: edit(folder, version=99),
    "no fingerprint": lambda folder: edit(folder, fingerprint=None),
    "no files": lambda folder: edit(folder, files={}),
    "files are a list": lambda folder: edit(folder, files=[]),
    "another count": lambda folder: edit(folder, count=71),
    "no index": lambda folder: only(folder, "*.index").unlink(),
    "no samples": lambda folder: only(folder, "*.samples").unlink(),
    "half an index": lambda folder: os.truncate(only(folder, "*.index"), 100),
    "a flipped bit in the index": lambda folder: flip(only(folder, "*.index")),
    "a flipped bit in the samples": lambda folder: flip(only(folder, "*.samples")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_one_clear_line(saved, damage):
    _, folder = saved
    damage(folder)
    with pytest.raises(GalleryError, match=r"build it again|this program reads 1") as caught:
        Gallery.open(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_no_folder(tmp_path):
    with pytest.raises(GalleryError, match='no gallery there; build one with "reid index build"'):
        Gallery.open(tmp_path / "nowhere")


def contents(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_erasing_an_identity_removes_it_everywhere(saved):
    data, folder = saved
    gallery = Gallery.open(folder)
    theirs = np.array([sample.identity == "id3" for sample in data.samples])
    vector = data.vectors[np.flatnonzero(theirs)[0]].tobytes()
    assert vector in contents(folder)
    assert gallery.erase("id3") == theirs.sum() == 10
    left = data.select(~theirs)
    for one in (gallery, Gallery.open(folder)):
        assert one.samples == left.samples
        assert_same(one.search(data.vectors, 60, fingerprint="f00d"), exact_search(data.vectors, left.vectors, 60))
    assert vector not in contents(folder)
    assert len(list(folder.iterdir())) == 3
    assert gallery.erase("id3") == 0


def test_erasing_everybody_leaves_an_empty_gallery(tmp_path):
    gallery = Gallery.build(embeddings(unit(np.random.default_rng(0), 6, 4), identities=1))
    gallery.save(tmp_path / "g")
    assert gallery.erase("id0") == 6
    again = Gallery.open(tmp_path / "g")
    assert (len(again), again.dimension) == (0, 4)
    with pytest.raises(GalleryError, match="the gallery is empty"):
        again.search(np.ones((1, 4), np.float32) / 2, 1, fingerprint="f00d")


def test_erasing_in_memory_only():
    gallery = Gallery.build(embeddings(unit(np.random.default_rng(0), 14, 4)))
    assert gallery.erase("id1") == 2
    assert len(gallery) == 12
    with pytest.raises(GalleryError, match="empty one"):
        gallery.erase("")


def test_a_stale_gallery_does_not_bring_the_erased_back(saved):
    _, folder = saved
    stale = Gallery.open(folder)
    Gallery.open(folder).erase("id3")
    with pytest.raises(GalleryError, match="changed by another program"):
        stale.erase("id4")
    assert "id3" not in {sample.identity for sample in Gallery.open(folder).samples}
    assert len(stale) == 70  # nothing was erased in memory that is not erased on disk


def test_an_erasure_that_was_stopped_before_deleting_is_finished_by_opening(saved, monkeypatch):
    data, folder = saved
    vector = data.vectors[3].tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_sweep", lambda folder: None)  # the program dies here
        Gallery.open(folder).erase("id3")
    assert vector in contents(folder)
    assert "id3" not in {sample.identity for sample in Gallery.open(folder).samples}
    assert vector not in contents(folder)
    assert len(list(folder.iterdir())) == 3


def test_an_erasure_that_fails_erases_nothing(saved, monkeypatch):
    data, folder = saved
    gallery = Gallery.open(folder)

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "_sha256", fail)
    with pytest.raises(GalleryError, match="Input/output error"):
        gallery.erase("id3")
    monkeypatch.undo()
    assert gallery.samples == Gallery.open(folder).samples == data.samples


def test_the_number_of_threads_is_given_back():
    before = module.faiss.omp_get_max_threads()
    with module._threads(1):
        assert module.faiss.omp_get_max_threads() == 1
    assert module.faiss.omp_get_max_threads() == before


def test_a_folder_is_claimed_before_the_work(tmp_path: Path) -> None:
    storage.claim(tmp_path / "a" / "gallery")
    assert not list((tmp_path / "a" / "gallery").iterdir())
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(GalleryError, match=r'holds "a" and is no gallery'):
        storage.claim(tmp_path)
    with pytest.raises(GalleryError, match=r"thesis\.doc: the gallery cannot be written \(.+\); choose another place"):
        storage.claim(tmp_path / "thesis.doc")


def test_a_network_that_does_not_fit_on_the_disk_is_told_of_the_gallery(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise WeightsError(f"{path}: cannot be written (full)") from OSError("No space left on device")

    with pytest.raises(GalleryError) as caught:
        storage.commit(tmp_path / "gallery", {"network": full}, {})
    assert str(caught.value).startswith(f"{tmp_path}/gallery: the gallery cannot be written (No space left on device);")
    assert not list((tmp_path / "gallery").iterdir())
