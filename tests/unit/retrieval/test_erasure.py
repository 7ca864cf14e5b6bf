"""An erasure reaches all that the program derived, and lasts until it is lifted; files of others stay."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.random_embeddings import embeddings_of, random_rows
from reid.errors import GalleryError
from reid.records import Embeddings
from reid.retrieval import erasure, storage
from reid.retrieval.embed import load_embeddings, save_embeddings
from reid.retrieval.erasure import erase_identity, erase_rows, lift_erasure
from reid.retrieval.filters import equals
from reid.retrieval.folder_reading import read_attached
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_header import encode_header
from reid.retrieval.query_file import load_queries, save_queries
from reid.retrieval.storage import QUERIES_FILE, check_gallery_folder
from reid.retrieval.tombstones import TOMBSTONES_FILE, read_tombstones


def rows(seed: int = 8) -> Embeddings:
    return embeddings_of(random_rows(np.random.default_rng(seed), 70, 12))


def renamed(embeddings: Embeddings, whose: str, **changes: str) -> Embeddings:
    """The same rows, with other labels for one identity."""
    samples = tuple(replace(s, **changes) if s.identity == whose else s for s in embeddings.samples)
    return replace(embeddings, samples=samples)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Gallery.build(rows()).save(tmp_path / "g")
    return tmp_path / "g"


def identities(folder: Path) -> set[str]:
    return {sample.identity for sample in Gallery.open(folder).samples}


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


USERS_FILES = (
    "data-export.csv",
    "data-0123456789abcdef.csv",
    "notes.part",
    ".mine.part",
    ".tmpAbC123",
    "data-old.index",
)


@pytest.mark.parametrize("name", USERS_FILES)
def test_files_of_the_user_stay(folder: Path, name: str) -> None:
    (folder / name).write_text("years of work")
    Gallery.open(folder)
    Gallery.build(rows(3)).save(folder)
    erase_identity(folder, "id3")
    check_gallery_folder(folder)
    assert (folder / name).read_text() == "years of work"


def test_a_reader_removes_nothing(folder: Path) -> None:
    for name in ("data-0123456789abcdef.index", ".header.json.01234567.part", "data-old", "x.part"):
        (folder / name).write_text("x")
    before = listing(folder)
    Gallery.open(folder).search(rows().vectors, 3, fingerprint="f00d")
    storage.check_gallery(folder)
    assert listing(folder) == before


def test_a_writer_removes_leftovers_of_killed_programs(folder: Path) -> None:
    left = ("data-0123456789abcdef.index", ".header.json.01234567.part", f".{QUERIES_FILE}.01234567.part")
    for name in left:
        (folder / name).write_text("x")
    shutil.copyfile(saved_queries(folder), folder / ".tmpAbC123")  # what safetensors leaves
    erase_identity(folder, "id3")
    assert not {*left, ".tmpAbC123"} & set(listing(folder))


def saved_queries(folder: Path) -> Path:
    save_queries(folder, rows())
    return folder / QUERIES_FILE


def test_one_changed_digit_in_a_header_destroys_nothing(folder: Path) -> None:
    header = folder / "header.json"
    text = header.read_text()
    (segment,) = json.loads(text)["segments"]
    for old in (json.loads(text)["generation"], *(f["sha256"] for f in segment["files"].values())):
        header.write_text(text.replace(old, ("0" if old[0] != "0" else "1") + old[1:], 1))
        before = listing(folder)
        for use in (Gallery.open, lambda one: erase_identity(one, "id3")):
            with pytest.raises(GalleryError, match="build it again") as caught:
                use(folder)
            assert "\n" not in str(caught.value)
        assert listing(folder) == before
    header.write_text(text)
    assert len(Gallery.open(folder)) == 70


def test_a_header_names_files_of_the_gallery_only(folder: Path) -> None:
    header = folder / "header.json"
    table = json.loads(header.read_text())
    files = table["segments"][0]["files"]
    (folder / "mine").write_bytes(Path(folder / files["vectors.npy"]["name"]).read_bytes())
    del table["check"]
    header.write_text(encode_header(table))
    assert len(Gallery.open(folder)) == 70
    files["vectors.npy"]["name"] = "mine"
    header.write_text(encode_header(table))
    with pytest.raises(GalleryError, match=r"header\.json is damaged"):
        Gallery.open(folder)


def test_a_pipe_as_header_is_an_error(folder: Path) -> None:
    (folder / "header.json").unlink()
    os.mkfifo(folder / "header.json")
    with pytest.raises(GalleryError, match=r"header\.json"):
        Gallery.open(folder)


def test_an_erasure_reaches_the_queries_of_the_same_folder(folder: Path) -> None:
    save_queries(folder, rows(5))
    erased = erase_identity(folder, "id3")
    assert [(one.path, one.rows) for one in erased] == [(folder, 10), (folder / QUERIES_FILE, 10)]
    assert "id3" not in {s.identity for s in load_embeddings(folder / QUERIES_FILE).samples}
    assert rows(5).vectors[3].tobytes() not in bytes_in(folder)
    assert len(load_queries(folder)) == 60


def test_an_erasure_reaches_the_other_galleries_of_the_application(tmp_path: Path) -> None:
    for name in ("street", "street-plain", "street-mine", "crops"):
        Gallery.build(rows()).save(tmp_path / name)
        save_queries(tmp_path / name, rows())
    other = rows()
    moved = tuple(replace(s, path=Path("elsewhere") / s.path) for s in other.samples)
    Gallery.build(replace(other, samples=moved)).save(tmp_path / "street-small-plain")
    erased = erase_identity(tmp_path / "street", "id3")
    own = [tmp_path / "street", tmp_path / "street-plain"]
    assert [one.path for one in erased] == [path for one in own for path in (one, one / QUERIES_FILE)]
    assert not any("id3" in identities(one) for one in own)
    for name in ("street-mine", "crops", "street-small-plain"):
        assert "id3" in identities(tmp_path / name), "derived from other data, or made by the user"


def test_a_rebuilt_gallery_leaves_erased_rows_out_until_the_erasure_is_lifted(folder: Path) -> None:
    Gallery.open(folder).erase("id3")
    again = Gallery.build(rows())
    again.save(folder)
    assert len(again) == len(Gallery.open(folder)) == 60
    assert rows().vectors[3].tobytes() not in bytes_in(folder)
    assert lift_erasure(folder, "id3") == (folder,)
    assert lift_erasure(folder, "id3") == ()
    assert read_tombstones(folder).lifted
    Gallery.build(rows()).save(folder)
    assert len(Gallery.open(folder)) == 70
    assert not (folder / TOMBSTONES_FILE).exists()


def test_a_tombstone_is_private_and_names_nobody(folder: Path) -> None:
    erase_identity(folder, "id3")
    path = folder / TOMBSTONES_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "id3" not in path.read_text()
    assert "vehicle" not in path.read_text()
    Gallery.build(rows()).save(folder.with_name("other"))
    erase_identity(folder.with_name("other"), "id3")
    ours, theirs = (read_tombstones(one).erased for one in (folder, folder.with_name("other")))
    assert ours.isdisjoint(theirs), "each folder has a salt of its own"


def test_an_identity_is_erased_within_one_category(tmp_path: Path) -> None:
    half = renamed(rows(), "id3", category="boat", identity="id4")
    Gallery.build(half).save(tmp_path)
    gallery = Gallery.open(tmp_path)
    assert gallery.erase("id4", "boat") == 10
    assert {s.category for s in gallery.samples} == {"vehicle"}
    assert "id4" in identities(tmp_path)
    Gallery.build(half).save(tmp_path)
    assert len(Gallery.open(tmp_path)) == 60
    assert lift_erasure(tmp_path, "id4", "vehicle") == ()
    assert lift_erasure(tmp_path, "id4", "boat") == (tmp_path,)


@pytest.mark.parametrize(("stored", "asked"), [("Zo\u00eb", "Zoe\u0308"), ("Zoe\u0308", "Zo\u00eb")])
def test_both_unicode_forms_of_a_name_are_one_identity(tmp_path: Path, stored: str, asked: str) -> None:
    Gallery.build(renamed(rows(), "id3", identity=stored)).save(tmp_path)
    assert Gallery.open(tmp_path).erase(asked) == 10
    for name in (stored, asked):
        Gallery.build(renamed(rows(), "id3", identity=name)).save(tmp_path)
        assert len(Gallery.open(tmp_path)) == 60


def test_a_gallery_in_memory_does_not_answer_with_rows_that_were_erased_since(folder: Path) -> None:
    data, gallery = rows(), Gallery.open(folder)
    gone = [row for row, sample in enumerate(data.samples) if sample.identity == "id3"]
    assert set(gone) & set(gallery.search(data.vectors[gone], 1, fingerprint="f00d").rows.ravel().tolist())
    erase_identity(folder, "id3")
    found = gallery.search(data.vectors, 60, fingerprint="f00d")
    assert found.rows.shape == (70, 60)
    assert not set(gone) & set(found.rows.ravel().tolist())


def test_an_erasure_stopped_after_the_tombstone_hides_the_rows_and_can_be_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_queries(folder, rows())
    with monkeypatch.context() as patch:
        patch.setattr(storage.GalleryWriter, "commit", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase_identity(folder, "id3")
    assert rows().vectors[3].tobytes() in bytes_in(folder)
    assert "id3" not in identities(folder)
    assert len(load_queries(folder)) == 60
    assert erase_identity(folder, "id3")[0].rows == 10
    assert rows().vectors[3].tobytes() not in bytes_in(folder)


def test_an_odd_folder_does_not_stop_an_erasure(folder: Path) -> None:
    (folder / "data-old").mkdir()
    (folder / "data-0123456789abcdef.index").mkdir()
    erased = erase_identity(folder, "id3")
    assert [one.remaining for one in erased] == [()]
    assert rows().vectors[3].tobytes() not in bytes_in(folder)


def test_what_cannot_be_removed_is_named_and_removed_by_the_next_writer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = folder.glob("*.vectors.npy")
    (rows_of_old,) = folder.glob("*.rows.parquet")
    unlink = Path.unlink

    def stuck(path: Path, missing_ok: bool = False) -> None:
        if path == old:
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stuck)
        (erased,) = erase_identity(folder, "id3")
    assert erased.rows == 10
    assert [line.split(": ")[0] for line in erased.remaining] == [str(old)]
    assert not rows_of_old.exists(), "each file is removed by itself"
    assert len(Gallery.open(folder)) == 60
    assert [one.remaining for one in erase_identity(folder, "id3")] == [()]
    assert not old.exists()


def test_too_little_room_is_said_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing(folder)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(erasure.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(GalleryError, match="nothing was erased"):
        erase_identity(folder, "id3")
    assert listing(folder) == before


def test_an_erasure_does_not_write_the_network_anew(tmp_path: Path) -> None:
    network = b"weights" * 1000
    Gallery.build(rows()).save(tmp_path, {"network.safetensors": lambda path: path.write_bytes(network)})
    (before,) = tmp_path.glob("*.network.safetensors")
    inode = before.stat().st_ino
    erase_identity(tmp_path, "id3")
    erase_identity(tmp_path, "id4")
    inodes = read_attached(tmp_path, "network.safetensors", lambda path: path.stat().st_ino)
    assert inodes == inode


def test_a_first_build_that_was_killed_leaves_a_folder_for_the_next(tmp_path: Path) -> None:
    (tmp_path / ".reid-partial" / "0123456789abcdef").mkdir(parents=True)
    (tmp_path / ".reid-partial" / "0123456789abcdef" / "data").write_text("half")
    for name in ("data-0123456789abcdef.index", ".data-0123456789abcdef.samples.01234567.part"):
        (tmp_path / name).write_text("half")
    save_embeddings(rows(), tmp_path / ".tmpAbC123")
    check_gallery_folder(tmp_path)
    Gallery.build(rows()).save(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy", ".parquet"]


def test_a_damaged_list_of_erasures_is_not_taken_for_an_empty_one(folder: Path) -> None:
    erase_identity(folder, "id3")
    path = folder / TOMBSTONES_FILE
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    for use in (Gallery.open, check_gallery_folder, lambda one: Gallery.build(rows()).save(one)):
        with pytest.raises(GalleryError, match=TOMBSTONES_FILE):
            use(folder)


def test_damaged_queries_are_removed_by_an_erasure(folder: Path) -> None:
    path = saved_queries(folder)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert [(one.path, one.rows) for one in erase_identity(folder, "id3")] == [(folder, 10), (path, None)]
    assert not path.exists()
    path.write_text("the user's own file")
    (erased,) = erase_identity(folder, "id4")
    assert str(path) in erased.remaining[0]
    assert path.exists()


def test_an_erasure_reaches_the_bytes_of_rows_that_were_removed_before(tmp_path: Path) -> None:
    Gallery.build(renamed(rows(), "id3", identity="Rosalind")).save(tmp_path / "g")
    taken = [s.path for s in Gallery.open(tmp_path / "g").samples if s.identity == "Rosalind"]
    vector = Gallery.open(tmp_path / "g").embeddings.vectors[[s.path in taken for s in rows().samples]][0].tobytes()
    erase_rows(tmp_path / "g", equals("path", *map(str, taken)))
    assert vector in bytes_in(tmp_path / "g")  # "reid index compact" removes the bytes
    (erased,) = erase_identity(tmp_path / "g", "Rosalind")
    assert (erased.rows, erased.finished) == (0, True)
    assert vector not in bytes_in(tmp_path / "g")
    assert "Rosalind" not in distinct_names(tmp_path / "g")


def distinct_names(folder: Path) -> set[str]:
    """Every identity that a file of the folder still names."""
    tables = [pq.read_table(path) for path in folder.glob("*.rows.parquet")]
    return {name for table in tables for name in table.column("identity").to_pylist()}
