"""``reid index``: a gallery is created, grows, answers, forgets, and is exchanged with other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from helpers.random_embeddings import random_rows
from reid.files import locked
from reid.retrieval import storage
from reid.retrieval.gallery import Gallery
from reid.retrieval.receipts import read_receipts

Run = Callable[..., str]
HEAD = "path,identity,camera,split,time,person,height\n"


@pytest.fixture
def run(reid: Any) -> Run:
    """Run a command that must succeed; what it prints."""

    def call(*arguments: object) -> str:
        code, out, err = reid(*arguments)
        assert code == 0, err
        return str(out)

    return call


@pytest.fixture
def refused(reid: Any) -> Run:
    """Run a command that must fail with one line; this line."""

    def call(*arguments: object) -> str:
        code, out, err = reid(*arguments)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        return str(err)

    return call


@pytest.fixture
def crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve crops of three people in two cameras, on two days, and manifests of the first six and of all."""
    monkeypatch.chdir(tmp_path)
    random, lines = np.random.default_rng(0), []
    for number in range(12):
        Image.fromarray(random.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        day = 1 + number // 6
        lines.append(
            f"{number}.png,p{number % 3},c{number % 2},gallery,2024-05-0{day}T10:00:00,x{number % 3},{150 + number}"
        )
    Path("first.csv").write_text(HEAD + "\n".join(lines[:6]) + "\n")
    Path("all.csv").write_text(HEAD + "\n".join([*lines, "0.png,p0,c0,query,,,"]) + "\n")
    return tmp_path


@pytest.fixture
def vectors(crops: Path, run: Run) -> Path:
    """A gallery of vectors that another program computed."""
    np.save("v.npy", random_rows(np.random.default_rng(1), 13, 8))
    run("index", "import", "G", "--embeddings", "v.npy", "--data", "all.csv", "--model", "theirs")
    return crops / "G"


def facts(run: Run, folder: object = "G") -> dict[str, Any]:
    return dict(json.loads(run("index", "info", folder, "--json")))


def test_a_gallery_grows_day_by_day(crops: Path, run: Run, refused: Run, plain_weights: Path) -> None:
    run("index", "create", "G", "--weights", plain_weights)
    assert facts(run)["rows"] == 0
    assert "holds a gallery" in refused("index", "create", "G", "--weights", plain_weights)
    reader = Gallery.open("G")
    assert "added 6 rows; 0 were there" in run("index", "add", "G", "--data", "first.csv")
    assert "added 6 rows; 6 were there" in run("index", "add", "G", "--data", "all.csv")
    assert "added 0 rows; 12 were there" in run("index", "add", "G", "--data", "all.csv")
    assert reader.reload()
    assert len(reader) == 12
    found = facts(run)
    assert (found["rows"], found["cameras"], found["identities"], found["segments"]) == (12, 2, 3, 2)
    assert found["fingerprint"] == reader.fingerprint
    run("index", "verify", "G")
    best = json.loads(run("index", "search", "G", "7.png", "--json", "--k", 3))
    assert best[0]["path"] == "7.png"
    assert best[0]["score"] == pytest.approx(1, abs=1e-5)
    Image.new("RGB", (16, 32), "red").save("3.png")
    assert "1 of the new rows replace" in run("index", "add", "G", "--data", "all.csv")
    assert facts(run)["rows"] == 12
    assert "12 rows in one segment" in run("index", "compact", "G")
    whole = Gallery.open("G")
    run("index", "build", "--weights", plain_weights, "--data", "all.csv", "--out", "H")
    again = Gallery.open("H").embeddings
    by_path = {sample.path: vector for sample, vector in zip(again.samples, again.vectors, strict=True)}
    for sample, vector in zip(whole.samples, whole.embeddings.vectors, strict=True):
        np.testing.assert_allclose(vector, by_path[sample.path], atol=1e-5)


def test_filters_of_a_search_lose_no_answer(crops: Path, run: Run, refused: Run, plain_weights: Path) -> None:
    run("index", "build", "--weights", plain_weights, "--data", "all.csv", "--out", "G")
    every = json.loads(run("search", "0.png", "--gallery", "G", "--json", "--k", 20))
    labels = {f"{n}.png": (f"p{n % 3}", f"c{n % 2}", n) for n in range(12)}

    def paths(*options: object) -> list[str]:
        return [
            row["path"] for row in json.loads(run("search", "0.png", "--gallery", "G", "--json", "--k", 20, *options))
        ]

    ranked = [row["path"] for row in every]
    assert sorted(ranked) == sorted(labels)
    assert paths("--in-camera", "c1") == [p for p in ranked if labels[p][1] == "c1"]
    assert paths("--not-in-camera", "c1") == [p for p in ranked if labels[p][1] != "c1"]
    assert paths("--after", "2024-05-02") == [p for p in ranked if labels[p][2] >= 6]
    assert paths("--before", "2024-05-02", "--where", "camera = 'c0'") == [
        p for p in ranked if labels[p][2] < 6 and labels[p][1] == "c0"
    ]
    firsts = paths("--one-per", "identity")
    assert firsts == [
        next(p for p in ranked if labels[p][0] == name) for name in dict.fromkeys(labels[p][0] for p in ranked)
    ]
    assert "colour" in refused("search", "0.png", "--gallery", "G", "--where", "colour = 'red'")
    assert "colour" in refused("search", "0.png", "--gallery", "G", "--one-per", "colour")
    assert "yesterday" in refused("search", "0.png", "--gallery", "G", "--before", "yesterday")


REMOVALS: dict[str, tuple[tuple[str, ...], Callable[[int], bool]]] = {
    "where": (("--where", "height >= 155 AND camera = 'c1'"), lambda n: n >= 5 and n % 2 == 1),
    "identity": (("--identity", "p1"), lambda n: n % 3 == 1),
    "person": (("--person", "x2"), lambda n: n % 3 == 2),
    "path": (("--path", "4.png"), lambda n: n == 4),
    "camera and time": (("--camera", "c0", "--before", "2024-05-02"), lambda n: n % 2 == 0 and n < 6),
}


@pytest.mark.parametrize("name", REMOVALS)
def test_removed_rows_are_gone_and_stay_out(vectors: Path, run: Run, refused: Run, name: str) -> None:
    options, is_gone = REMOVALS[name]
    reader, everything = Gallery.open("G"), Gallery.open("G").embeddings
    run("index", "remove", "G", *options)
    left = [sample.path.stem for sample in Gallery.open("G").samples]
    assert left == [s.path.stem for s in everything.samples if not is_gone(int(s.path.stem))]
    found = reader.search(everything.vectors, 20, fingerprint="theirs")
    assert {reader.samples[row].path.stem for row in found.rows[0, : found.counts[0]]} == set(left)
    assert "no row fulfils" in refused("index", "remove", "G", *options)
    assert "added 0 rows" in run(
        "index", "import", "G", "--embeddings", "v.npy", "--data", "all.csv", "--model", "theirs"
    )
    run("index", "compact", "G")
    run("index", "verify", "G")
    content = b"".join(path.read_bytes() for path in vectors.iterdir())
    for sample, vector in zip(everything.samples, everything.vectors, strict=True):
        assert (vector.tobytes() in content) != is_gone(int(sample.path.stem))
    said = [{k: v for k, v in one.items() if k not in ("id", "previous", "time")} for one in read_receipts(vectors)]
    assert not any(word in str(said) for word in ("p1", "x2", "4.png", "c0", "155"))
    assert [receipt["action"] for receipt in read_receipts(vectors)] == ["remove", "compact"]
    run("index", "restore", "G", *(("p1",) if name == "identity" else ("--removed",)))
    again = run("index", "import", "G", "--embeddings", "v.npy", "--data", "all.csv", "--model", "theirs")
    assert f"added {sum(map(is_gone, range(12)))} rows" in again


def test_images_are_deleted_if_asked(vectors: Path, run: Run) -> None:
    assert "deleted 6 images" in run("index", "remove", "G", "--camera", "c1", "--delete-files", "--compact")
    assert [Path(f"{n}.png").exists() for n in range(12)] == [n % 2 == 0 for n in range(12)]


def test_rows_are_kept_for_some_days(vectors: Path, run: Run, refused: Run) -> None:
    assert "keeps all crops" in refused("index", "retain", "G")
    out = run("index", "retain", "G", "--days", "30")
    assert "removed 12 rows" in out
    again = run("index", "import", "G", "--embeddings", "v.npy", "--data", "all.csv", "--model", "theirs")
    assert "added 0 rows" in again
    assert "12 stay out" in again
    run("index", "retain", "G", "--forever")
    run("index", "import", "G", "--embeddings", "v.npy", "--data", "all.csv", "--model", "theirs")
    assert facts(run)["rows"] == 12


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".safetensors"])
def test_exported_rows_come_back(vectors: Path, run: Run, suffix: str) -> None:
    out = f"e{suffix}"
    run("index", "export", "G", "--out", out)
    table = ("--data", "e.csv") if suffix == ".npy" else ()
    run("index", "import", "H", "--embeddings", out, *table, "--model", "theirs")
    before, after = Gallery.open("G"), Gallery.open("H")
    np.testing.assert_array_equal(before.embeddings.vectors, after.embeddings.vectors)
    assert [s.identity for s in before.samples] == [s.identity for s in after.samples]
    merged = run("index", "merge", "M", "G", "H")
    assert len(Gallery.open("M")) == len(before), merged


@pytest.mark.parametrize(
    ("out", "lost"),
    [("all.npy", "all.csv"), ("v.npz", "v.npz"), ("t.parquet", "t.parquet"), ("e.safetensors", "e.safetensors")],
)
def test_an_export_replaces_nothing_but_an_export(vectors: Path, run: Run, refused: Run, out: str, lost: str) -> None:
    if lost == "t.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"path": ["mine.jpg"]}), lost)
    elif not Path(lost).exists():
        Path(lost).write_text("years of work")
    before = Path(lost).read_bytes()
    assert lost in refused("index", "export", "G", "--out", out)
    assert Path(lost).read_bytes() == before
    Path(lost).unlink()
    run("index", "export", "G", "--out", out)
    if lost == "all.csv":  # as a program leaves it that is killed between the two files
        Path(lost).unlink()
    run("index", "export", "G", "--out", out)
    assert Path(lost).exists()


def test_vectors_of_others_are_checked(crops: Path, refused: Run) -> None:
    good = random_rows(np.random.default_rng(1), 13, 8)
    bad = {
        "short": good[:5],
        "nan": np.where(np.arange(13)[:, None] == 3, np.nan, good),
        "zero": good * 0,
        "flat": good[0],
    }
    for name, array in bad.items():
        np.save(f"{name}.npy", array)
        refused("index", "import", "G", "--embeddings", f"{name}.npy", "--data", "all.csv")
    Path("text.npy").write_text("no numbers")
    refused("index", "import", "G", "--embeddings", "text.npy", "--data", "all.csv")
    refused("index", "import", "G", "--embeddings", "short.npy")
    refused("index", "import", "G", "--embeddings", "nowhere.npy", "--data", "all.csv")
    assert not Path("G").exists()


def test_vectors_of_others_are_scored(crops: Path, run: Run, plain_weights: Path) -> None:
    run("embed", "--data", "all.csv", "--weights", plain_weights, "--out", "e.safetensors")
    run("evaluate", "--data", "all.csv", "--weights", plain_weights, "--json", "own.json")
    run("evaluate", "--embeddings", "e.safetensors", "--json", "theirs.json")
    own, theirs = (json.loads(Path(name).read_text())["results"][0] for name in ("own.json", "theirs.json"))
    assert own["mAP"] == pytest.approx(theirs["mAP"], abs=1e-9)
    assert own["fingerprint"] == theirs["fingerprint"]


def test_a_second_writer_is_told(vectors: Path, refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAIT", 0)
    before = sorted(path.name for path in vectors.iterdir())
    with locked(vectors):
        for verb in (("remove", "G", "--camera", "c0"), ("compact", "G"), ("retain", "G", "--days", "3")):
            assert "another program is writing" in refused("index", *verb)
        assert len(Gallery.open("G")) == 12, "readers go on"
    assert sorted(path.name for path in vectors.iterdir()) == before


def test_a_file_system_without_locks_is_refused(vectors: Path, refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("reid.files.fcntl.flock", unsupported)
    assert "no locks" in refused("index", "remove", "G", "--camera", "c0")
    assert len(Gallery.open("G")) == 12


def test_damage_is_named(vectors: Path, refused: Run, run: Run) -> None:
    (rows,) = vectors.glob("*.rows.parquet")
    os.truncate(rows, 100)
    for verb in ("verify", "info", "list", "compact"):
        assert rows.name in refused("index", verb, "G")
