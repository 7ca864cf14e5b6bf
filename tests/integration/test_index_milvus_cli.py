"""``reid index`` on a file of Milvus Lite answers as on a folder; other verbs refuse the address in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reid.retrieval.gallery import Gallery

HEAD = "path,identity,camera,split,note\n"


@pytest.fixture
def crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine crops of three people in two cameras, and a manifest of the first six and of all."""
    monkeypatch.chdir(tmp_path)
    random, lines = np.random.default_rng(0), []
    for number in range(9):
        Image.fromarray(random.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,p{number % 3},c{number % 2},gallery,n{number}")
    Path("first.csv").write_text(HEAD + "\n".join(lines[:6]) + "\n")
    Path("all.csv").write_text(HEAD + "\n".join(lines) + "\n")
    return tmp_path


def run(reid: Any, *arguments: object) -> str:
    code, out, err = reid(*arguments)
    assert code == 0, err
    return str(out)


def test_the_verbs_answer_as_on_a_folder(reid: Any, crops: Path, plain_weights: Path) -> None:
    network = ("--weights", plain_weights)
    answers = {}
    for place in ("g.db", "G"):
        own = network if place == "g.db" else ()
        run(reid, "index", "create", place, *network)
        assert "added 6 rows; 0 were there" in run(reid, "index", "add", place, "--data", "first.csv", *own)
        assert "added 3 rows; 6 were there" in run(reid, "index", "add", place, "--data", "all.csv", *own)
        facts = json.loads(run(reid, "index", "info", place, "--json"))
        listed = json.loads(run(reid, "index", "list", place, "--where", "note <> 'n4'", "--json"))
        asked = ("index", "search", place, "4.png", "--k", 5, "--where", "camera = 'c0'", "--one-per", "identity")
        found = json.loads(run(reid, *asked, *own, "--json"))
        plain = [(row["path"], row["score"]) for row in found]
        page = json.loads(run(reid, "search", "4.png", "--gallery", place, "--score-norm", "none", *network, "--json"))
        run(reid, "index", "remove", place, "--camera", "c1")
        run(reid, "index", "erase", place, "p0")
        run(reid, "index", "compact", place)
        run(reid, "index", "verify", place)
        left = [row["path"] for row in json.loads(run(reid, "index", "list", place, "--json"))]
        answers[place] = {name: facts[name] for name in ("rows", "cameras", "fingerprint")}, listed, plain, page, left
    assert answers["g.db"] == answers["G"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("index", "tune", "milvus://localhost/street"),
        ("index", "merge", "G", "street.db"),
        ("index", "merge", "street.db", "G"),
        ("index", "export", "milvus://localhost/street", "--out", "x.npz"),
        ("index", "retain", "street.db", "--days", 3),
        ("index", "build", "--out", "street.db", "--data", "all.csv"),
        ("index", "refresh", "street.db", "--profiles", "p.safetensors"),
    ],
)
def test_other_verbs_refuse_the_address_in_one_line(
    reid: Any, crops: Path, plain_weights: Path, arguments: tuple[object, ...]
) -> None:
    run(reid, "index", "create", "G", "--weights", plain_weights)
    if arguments[1] == "build":
        arguments = (*arguments, "--weights", plain_weights)
    before = sorted(crops.iterdir())
    code, out, err = reid(*arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "Milvus" in err
    assert ("milvus://localhost/street" in err) == ("milvus://localhost/street" in arguments)
    assert sorted(crops.iterdir()) == before


def test_mistakes_are_one_line(reid: Any, crops: Path, plain_weights: Path, camera_weights: Path) -> None:
    run(reid, "index", "create", "g.db", "--weights", plain_weights)
    run(reid, "index", "add", "g.db", "--data", "all.csv", "--weights", plain_weights)
    for arguments, words in (
        (("index", "remove", "g.db", "--person", "person-1"), "no persons"),
        (("index", "add", "g.db", "--data", "all.csv", "--thumbnails", "--weights", plain_weights), "no images"),
        (("index", "remove", "g.db", "--camera", "c9"), "no row"),
        (("index", "erase", "g.db", "nobody"), "no row"),
        (("index", "search", "g.db", "1.png", "--category", "vehicle", "--weights", plain_weights), "no row"),
        (("index", "create", "g.db", "--weights", plain_weights), "already"),
        (("index", "info", "other.db"), "no gallery there"),
    ):
        code, out, err = reid(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), arguments
        assert words in err
    gallery = Gallery.open("g.db")
    assert len(gallery) == 9
