"""Galleries on disk: private and durable folders, damage, replacement and erasure."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from helpers.random_embeddings import assert_same_ranking, embeddings_of, random_rows
from reid.errors import GalleryError, WeightsError
from reid.records import Embeddings, Sample
from reid.retrieval import segment_writing, storage
from reid.retrieval.exact import exact_search
from reid.retrieval.gallery import Gallery


@pytest.fixture
def saved(tmp_path):
    data = embeddings_of(random_rows(np.random.default_rng(8), 70, 12))
    Gallery.build(data).save(tmp_path / "g")
    return data, tmp_path / "g"


def test_a_saved_gallery_opens_unchanged(saved):
    data, folder = saved
    gallery = Gallery.open(folder)
    assert gallery.samples == data.samples
    assert (gallery.fingerprint, gallery.dimension, len(gallery)) == ("f00d", 12, 70)
    np.testing.assert_array_equal(gallery.embeddings.vectors, data.vectors)
    assert_same_ranking(
        gallery.search(data.vectors, 9, fingerprint="f00d"), exact_search(data.vectors, data.vectors, 9)
    )


def test_only_the_owner_may_read(tmp_path):
    (tmp_path / "g").mkdir()  # a folder that exists already becomes private, too
    (tmp_path / "g").chmod(0o755)
    before = os.umask(0)
    try:
        Gallery.build(embeddings_of(random_rows(np.random.default_rng(0), 5, 4))).save(tmp_path / "g")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "g").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "g").iterdir()} == {0o600}


def test_saving_replaces_the_old_gallery_and_its_files(saved):
    _, folder = saved
    old = {path.name for path in folder.iterdir()}
    other = embeddings_of(random_rows(np.random.default_rng(1), 5, 12))
    Gallery.build(other).save(folder)
    assert Gallery.open(folder).samples == other.samples
    new = {path.name for path in folder.iterdir()}
    assert len(new) == len(old) == 3
    assert new & old == {"header.json"}


def test_a_stopped_save_leaves_the_old_gallery(saved, monkeypatch):
    data, folder = saved
    calls = []

    def full(path, *rest):
        calls.append(path)
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment_writing, "write_vectors", full)
    with pytest.raises(GalleryError, match="No space left on device"):
        Gallery.build(embeddings_of(random_rows(np.random.default_rng(1), 5, 12))).save(folder)
    assert calls
    assert Gallery.open(folder).samples == data.samples
    assert len(list(folder.iterdir())) == 3


def test_a_folder_with_other_files_is_not_changed(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    tmp_path.chmod(0o755)
    with pytest.raises(GalleryError, match=r"thesis\.tex"):
        Gallery.build(embeddings_of(random_rows(np.random.default_rng(1), 5, 4))).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def single_file(folder, pattern):
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
    "no segments": lambda folder: edit(folder, segments=[]),
    "files are a list": lambda folder: edit(folder, files=[]),
    "another count": lambda folder: edit(folder, count=71),
    "no vectors": lambda folder: single_file(folder, "*.vectors.npy").unlink(),
    "no rows": lambda folder: single_file(folder, "*.rows.parquet").unlink(),
    "half the vectors": lambda folder: os.truncate(single_file(folder, "*.vectors.npy"), 100),
    "a flipped bit in the rows": lambda folder: flip(single_file(folder, "*.rows.parquet")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_one_clear_line(saved, damage):
    _, folder = saved
    damage(folder)
    with pytest.raises(GalleryError, match=r"build it again|reads 1") as caught:
        Gallery.open(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_flipped_bit_in_the_vectors_is_one_clear_line_before_anything_is_answered(saved):
    data, folder = saved
    flip(single_file(folder, "*.vectors.npy"))
    gallery = Gallery.open(folder)
    for use in (
        lambda: gallery.search(data.vectors, 3, fingerprint="f00d"),
        lambda: gallery.embeddings,
        gallery.verify,
    ):
        with pytest.raises(GalleryError, match=r"vectors\.npy has other contents"):
            use()


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(GalleryError, match="nowhere"):
        Gallery.open(tmp_path / "nowhere")


def contents(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_erasing_an_identity_removes_it_everywhere(saved):
    data, folder = saved
    gallery = Gallery.open(folder)
    erased = np.array([sample.identity == "id3" for sample in data.samples])
    vector = data.vectors[np.flatnonzero(erased)[0]].tobytes()
    assert vector in contents(folder)
    assert gallery.erase("id3") == erased.sum() == 10
    remaining = data.select(~erased)
    for one in (gallery, Gallery.open(folder)):
        assert one.samples == remaining.samples
        assert_same_ranking(
            one.search(data.vectors, 60, fingerprint="f00d"), exact_search(data.vectors, remaining.vectors, 60)
        )
    assert vector not in contents(folder)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".jsonl", ".npy", ".parquet"]
    assert gallery.erase("id3") == 0


def test_erasing_every_identity_leaves_an_empty_gallery(tmp_path):
    gallery = Gallery.build(embeddings_of(random_rows(np.random.default_rng(0), 6, 4), identities=1))
    gallery.save(tmp_path / "g")
    assert gallery.erase("id0") == 6
    again = Gallery.open(tmp_path / "g")
    assert (len(again), again.dimension) == (0, 4)
    with pytest.raises(GalleryError, match="empty"):
        again.search(np.ones((1, 4), np.float32) / 2, 1, fingerprint="f00d")


def test_an_outdated_gallery_does_not_restore_an_erased_identity(saved):
    _, folder = saved
    stale = Gallery.open(folder)
    Gallery.open(folder).erase("id3")
    with pytest.raises(GalleryError, match="another program"):
        stale.erase("id4")
    assert "id3" not in {sample.identity for sample in Gallery.open(folder).samples}
    assert len(stale) == 70  # rows stay in memory as long as they stay on disk


def test_the_next_writer_finishes_an_erasure_that_was_stopped_before_deleting(saved, monkeypatch):
    data, folder = saved
    vector = data.vectors[3].tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(storage.GalleryWriter, "sweep", lambda writer: [])  # as if the program was killed here
        Gallery.open(folder).erase("id3")
    assert vector in contents(folder)
    assert "id3" not in {sample.identity for sample in Gallery.open(folder).samples}
    assert vector in contents(folder), "readers remove nothing"
    Gallery.open(folder).erase("id4")
    assert vector not in contents(folder)
    assert len(list(folder.iterdir())) == 5


def test_an_erasure_that_fails_erases_nothing(saved, monkeypatch):
    data, folder = saved
    gallery = Gallery.open(folder)

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "sha256_of", fail)
    with pytest.raises(GalleryError, match="Input/output error"):
        gallery.erase("id3")
    monkeypatch.undo()
    assert gallery.samples == Gallery.open(folder).samples == data.samples


def test_a_folder_is_checked_before_the_work(tmp_path: Path) -> None:
    storage.check_gallery_folder(tmp_path / "a" / "gallery")
    assert not list(tmp_path.iterdir()), "a build that fails later leaves no empty folder"
    (tmp_path / "a").mkdir()
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(GalleryError, match='"a"'):
        storage.check_gallery_folder(tmp_path)
    with pytest.raises(GalleryError, match=r"thesis\.doc"):
        storage.check_gallery_folder(tmp_path / "thesis.doc")


def test_an_error_of_the_network_file_names_the_gallery(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise WeightsError(f"{path}: cannot be written (full)") from OSError("No space left on device")

    with pytest.raises(GalleryError) as caught:
        Gallery.create(tmp_path / "gallery", "f00d", 4, {"network": full})
    assert str(caught.value).startswith(f"{tmp_path}/gallery: ")
    assert "(No space left on device)" in str(caught.value)
    assert not (tmp_path / "gallery").exists()


def test_a_reader_takes_over_new_rows_after_it_has_searched(tmp_path: Path) -> None:
    rows = Embeddings((Sample(Path("1.jpg"), "anna"),), np.eye(1, 4, dtype=np.float32), "f00d")
    Gallery.build(rows).save(tmp_path / "g")
    reader = Gallery.open(tmp_path / "g")
    more = Embeddings((Sample(Path("2.jpg"), "ben"),), np.eye(1, 4, 1, dtype=np.float32), "f00d")
    Gallery.open(tmp_path / "g").add(more)
    assert reader.search(rows.vectors, 5, fingerprint="f00d").counts.tolist() == [1]
    assert reader.reload()
    assert reader.search(rows.vectors, 5, fingerprint="f00d").counts.tolist() == [2]


@pytest.mark.parametrize("mode", [0o555, 0o500])
def test_a_read_only_folder_stays_as_it_is(tmp_path, mode, monkeypatch):
    folder = tmp_path / "g"
    gallery = Gallery.build(embeddings_of(random_rows(np.random.default_rng(0), 9, 4)))
    gallery.save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.chmod(mode)
    for change in (lambda: gallery.remove("camera = 'c1'"), lambda: gallery.erase("id1"), gallery.compact):
        with pytest.raises(GalleryError, match=f"{mode:04o}"):
            change()
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(Gallery.open(folder)) == 9
    folder.chmod(0o700)
    monkeypatch.setattr(os, "access", lambda *_: False)  # the folder of somebody else
    with pytest.raises(GalleryError, match="read-only for you"):
        gallery.compact()
