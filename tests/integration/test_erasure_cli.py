"""``reid index erase`` and ``restore``: one line for each location, and exit codes that say what is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.random_embeddings import embeddings_of, random_rows
from reid.retrieval.gallery import Gallery
from reid.retrieval.kept_site import FORMAT
from reid.retrieval.query_file import save_queries
from reid.retrieval.storage import QUERIES_FILE, SITE_SUFFIX


@pytest.fixture
def galleries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two galleries of the application, with queries."""
    monkeypatch.chdir(tmp_path)
    rows = embeddings_of(random_rows(np.random.default_rng(8), 70, 12))
    for name in ("street", "street-plain"):
        Gallery.build(rows).save(Path(name))
        save_queries(Path(name), rows)
    return tmp_path


def test_each_location_is_a_line(reid, galleries: Path) -> None:
    code, out, err = reid("index", "erase", "street", "id3", "--category", "vehicle")
    assert (code, err) == (0, "")
    lines = [line.split("\t") for line in out.splitlines()]
    assert [where for where, _ in lines] == [
        "street",
        f"street/{QUERIES_FILE}",
        "street-plain",
        f"street-plain/{QUERIES_FILE}",
    ]
    assert all("erased 10 rows of id3" in what for _, what in lines)
    code, _, err = reid("index", "erase", "street", "id3", "--category", "vehicle")
    assert code == 1
    assert "erased before" in err


@pytest.mark.parametrize("arguments", [("nobody",), ("id3", "--category", "boat"), ("",)])
def test_who_is_not_there_is_an_error_and_leaves_no_trace(reid, galleries: Path, arguments: tuple[str, ...]) -> None:
    before = sorted(path.name for path in (galleries / "street").iterdir())
    code, out, err = reid("index", "erase", "street", *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert sorted(path.name for path in (galleries / "street").iterdir()) == before


def test_what_remains_is_named_and_the_gallery_is_right(reid, galleries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old,) = Path("street").glob("*.vectors.npy")
    unlink = Path.unlink

    def stuck(path: Path, missing_ok: bool = False) -> None:
        if path.name == old.name:
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stuck)
        code, out, err = reid("index", "erase", "street", "id3")
    assert code == 1
    assert "erased 10 rows" in out
    (line,) = err.splitlines()
    assert str(old) in line
    assert "still holds erased rows" in line
    assert "id3" not in {sample.identity for sample in Gallery.open("street").samples}
    assert reid("index", "erase", "street", "id3")[0] == 0
    assert not old.exists()


def test_a_lifted_erasure_is_a_line_for_each_gallery(reid, galleries: Path) -> None:
    assert reid("index", "erase", "street", "id3")[0] == 0
    code, _, err = reid("index", "restore", "street", "id3", "--category", "vehicle")
    assert code == 1
    assert "leave --category out" in err
    code, out, _ = reid("index", "restore", "street-plain", "id3")
    assert code == 0
    assert sorted(line.split("\t")[0] for line in out.splitlines()) == ["street", "street-plain"]
    code, _, err = reid("index", "restore", "street", "id3")
    assert (code, err.count("\n")) == (1, 1)
    assert reid("index", "restore", "nowhere", "id3")[0] == 1


def test_a_damaged_gallery_beside_is_named(reid, galleries: Path) -> None:
    (vectors,) = Path("street-plain").glob("*.vectors.npy")
    vectors.write_bytes(b"damaged")
    code, out, err = reid("index", "erase", "street", "id3")
    assert code == 1
    assert "street\terased 10 rows" in out
    assert "street-plain" in err
    assert err.count("\n") == 1


def test_restore_tells_how_crops_come_back_that_were_removed_by_other_conditions(reid, galleries: Path) -> None:
    camera = Gallery.open("street").samples[0].camera
    assert reid("index", "remove", "street", "--identity", "id3", "--camera", camera)[0] == 0
    code, _, err = reid("index", "restore", "street", "id3")
    assert (code, err.count("\n"), "--removed" in err) == (1, 1, True)
    assert reid("index", "restore", "street", "--removed")[0] == 0


def test_profiles_that_hold_embeddings_are_named(reid, galleries: Path) -> None:
    folder = galleries / "street"
    assert "profiles" not in reid("index", "erase", folder, "id1")[2]
    gallery = Gallery.open(folder)

    def write(path: Path) -> None:
        vectors = np.eye(1, gallery.dimension, dtype=np.float16)
        save_file({"vectors": vectors}, path, {"format": FORMAT, "domains": '[""]', "cameras": '["person/c0"]'})

    gallery.save(folder, {SITE_SUFFIX: write})
    code, _, err = reid("index", "erase", folder, "id2")
    assert (code, "profiles" in err) == (0, True)
