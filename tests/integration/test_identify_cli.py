"""``reid identify`` from the command line: persons, decisions, undo, export, hand-offs, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.person_crops import of_people, people
from reid.cli import main
from reid.files import locked
from reid.retrieval.gallery import Gallery


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    Gallery.build(people(10)).save(tmp_path / "gallery")
    return tmp_path / "gallery"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    with pytest.raises(SystemExit) as stop:
        main(["identify", *map(str, words)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err.splitlines()


def persons(capsys: pytest.CaptureFixture[str], gallery: Path) -> dict[str, str]:
    """The person of each crop, by path; crops without one are missing."""
    code, out, _ = run(capsys, "list", "--gallery", gallery, "--json")
    assert code == 0
    return {crop["path"]: one["person"] for one in json.loads(out)["persons"] for crop in one["crops"]}


def test_persons_are_found_scored_and_kept(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--gallery", gallery, "--json")
    report = json.loads(out)
    assert (code, report["number_of_persons"], report["undecided"]) == (0, 10, 0)
    assert report["scores"]["pairwise_f1"] == 1
    assert report["added"] == {"existing": 0, "new": 80, "undecided": 0, "new_persons": 10}
    assert all(0 <= one["confidence"] <= 1 for one in report["persons"])
    code, out, err = run(capsys, "--gallery", gallery)
    assert len(out.splitlines()) == 10
    assert "10 persons" in err[-1]


def test_a_human_word_is_kept_undone_and_carried_over(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "--gallery", gallery)
    first = persons(capsys, gallery)
    for words in (
        ("same", "person-2", "person-5"),
        ("name", "person-2", "Anna"),
        ("different", "p00_door_0.jpg", "person-1"),
        ("split", "p07_door_0.jpg", "p07_door_1.jpg"),
        ("confirm", "person-4"),
    ):
        assert run(capsys, *words, "--gallery", gallery)[0] == 0
    decided = persons(capsys, gallery)
    assert decided["p04_door_0.jpg"] == "person-2"
    assert decided["p00_door_0.jpg"] not in first.values()
    assert decided["p07_door_0.jpg"] == decided["p07_door_1.jpg"] not in first.values()
    file = tmp_path / "decisions.json"
    assert run(capsys, "export", file, "--gallery", gallery)[0] == 0
    run(capsys, "--gallery", gallery, "--again")
    assert persons(capsys, gallery) == decided
    for _ in range(5):
        assert run(capsys, "undo", "--gallery", gallery)[0] == 0
    assert persons(capsys, gallery) == first
    code, out, _ = run(capsys, "import", file, "--gallery", gallery)
    assert (code, persons(capsys, gallery)) == (0, decided)
    code, out, _ = run(capsys, "history", "--gallery", gallery)
    assert len(out.splitlines()) == 5


def test_decisions_find_their_crops_in_another_gallery(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "--gallery", gallery)
    run(capsys, "name", "p08_door_0.jpg", "Anna", "--gallery", gallery)
    run(capsys, "export", tmp_path / "decisions.json", "--gallery", gallery)
    Gallery.build(of_people(people(10), range(3, 10))).save(tmp_path / "other")
    run(capsys, "--gallery", tmp_path / "other")
    before = persons(capsys, tmp_path / "other")
    assert run(capsys, "import", tmp_path / "decisions.json", "--gallery", tmp_path / "other")[0] == 0
    assert persons(capsys, tmp_path / "other") == before
    _, out, _ = run(capsys, "list", "--gallery", tmp_path / "other", "--json")
    named = next(one for one in json.loads(out)["persons"] if one["name"] == "Anna")
    assert {crop["path"][:3] for crop in named["crops"]} == {"p08"}


def test_an_opposite_decision_is_refused_or_replaces_the_older_one(
    gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "--gallery", gallery)
    run(capsys, "same", "p01_door_0.jpg", "p02_door_0.jpg", "--gallery", gallery)
    joined = persons(capsys, gallery)
    code, out, err = run(capsys, "different", "p01_door_0.jpg", "p02_door_0.jpg", "--gallery", gallery)
    assert (code, out, len(err)) == (1, "", 1)
    assert persons(capsys, gallery) == joined
    assert run(capsys, "different", "p01_door_0.jpg", "p02_door_0.jpg", "--gallery", gallery, "--instead")[0] == 0
    apart = persons(capsys, gallery)
    assert apart["p01_door_0.jpg"] != apart["p02_door_0.jpg"]
    run(capsys, "undo", "--gallery", gallery)
    assert persons(capsys, gallery) == joined


def test_hand_offs_follow_the_times(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--gallery", gallery)
    code, out, _ = run(capsys, "handoff", "--left", "door", "--gallery", gallery, "--json")
    found = json.loads(out)
    assert (code, len(found)) == (0, 10)
    assert {(one["left_camera"], one["appeared_camera"], one["seconds"]) for one in found} == {("door", "yard", 177.0)}
    code, out, _ = run(capsys, "handoff", "--left", "door", "--within", 60, "--gallery", gallery)
    assert out.count("not found again") == 10


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("--method", "magic"), "magic"),
        (("--false-match-rate", "1"), "--false-match-rate"),
        (("same", "person-1", "person-99"), "person-99"),
        (("same", "person-1", "person-1"), "two different"),
        (("different", "person-1", "person-1"), "person-1"),
        (("confirm", "p00_door_0.jpg"), "p00_door_0.jpg"),
        (("split", "p00_door_0.jpg", "p01_door_0.jpg"), "one person"),
        (("name", "person-1", "person-3"), "person-3"),
        (("undo",), "no decision"),
        (("undo", "3"), "no decision"),
        (("import", "none.json"), "none.json"),
        (("handoff", "--left", "dor"), "door"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    gallery: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], word: str
) -> None:
    run(capsys, "--gallery", gallery)
    before = {path.name: path.read_bytes() for path in gallery.iterdir()}
    code, out, err = run(capsys, *words, "--gallery", gallery)
    assert (code, out, len(err)) == (1, "", 1), err
    assert word in err[0]
    kept = {path.name: path.read_bytes() for path in gallery.iterdir()}
    assert kept == before


def test_damaged_decisions_are_one_line_and_stay(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--gallery", gallery)
    run(capsys, "same", "person-1", "person-2", "--gallery", gallery)
    file = gallery / "decisions.json"
    damaged = file.read_text().replace("person", "pers0n", 1)
    file.write_text(damaged)
    for words in (("list",), ("same", "person-3", "person-4"), (), ("history",)):
        code, _, err = run(capsys, *words, "--gallery", gallery)
        assert (code, len(err)) == (1, 1)
        assert "decisions.json" in err[0]
    assert file.read_text() == damaged


def test_two_writers_are_told(
    gallery: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "--gallery", gallery)
    monkeypatch.setattr("reid.retrieval.storage.WAIT", 0)
    with locked(gallery):
        code, _, err = run(capsys, "same", "person-1", "person-2", "--gallery", gallery)
    assert (code, len(err)) == (1, 1)
    assert run(capsys, "same", "person-1", "person-2", "--gallery", gallery)[0] == 0


def test_a_program_that_is_stopped_before_the_header_loses_no_decision(
    gallery: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "--gallery", gallery)
    with monkeypatch.context() as patched:
        patched.setattr("reid.retrieval.storage.GalleryWriter.commit", _stop)
        with pytest.raises(SystemExit):
            main(["identify", "same", "person-1", "person-2", "--gallery", str(gallery)])
    capsys.readouterr()
    assert len(set(persons(capsys, gallery).values())) == 9
    Gallery.open(gallery).verify()
    assert np.isin(["p00_door_0.jpg"], list(persons(capsys, gallery))).all()


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_every_verb_that_selects_rows_knows_persons_by_id_and_by_name(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def index(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["index", *map(str, words)])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    code, _, err = index("remove", gallery, "--person", "person-2")
    assert (code, "reid identify" in err) == (1, True)  # nobody has been identified
    run(capsys, "--gallery", gallery)
    run(capsys, "name", "person-2", "Anna O'Brien", "--gallery", gallery)
    crops = {path for path, person in persons(capsys, gallery).items() if person == "person-2"}
    for who in ("person-2", "Anna O''Brien"):
        code, out, _ = index("list", gallery, "--where", f"person = '{who}'", "--json")
        assert (code, {row["path"] for row in json.loads(out)}) == (0, crops)
        code, out, _ = index("list", gallery, "--where", f"NOT person IN ('{who}', 'person-3')", "--limit", 0, "--json")
        assert (code, len(json.loads(out))) == (0, 64)
    assert index("export", gallery, "--where", "person = 'person-2'", "--out", tmp_path / "e.npz")[0] == 0
    with np.load(tmp_path / "e.npz") as exported:
        assert {len(exported[name]) for name in exported.files if exported[name].ndim} == {len(crops)}
    assert index("remove", gallery, "--person", "Anna O'Brien", "--camera", "nowhere")[0] == 1
    code, out, _ = index("remove", gallery, "--person", "Anna O'Brien", "--compact")
    assert (code, "removed 8 rows" in out) == (0, True)
    assert not crops & set(Gallery.open(gallery).table.column("path").to_pylist())
    assert all(
        "Anna" not in file.read_bytes().decode(errors="replace") for file in gallery.rglob("*") if file.is_file()
    )


def test_an_older_export_brings_no_erased_crop_back(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, file = Gallery.open(gallery).samples, tmp_path / "decisions.json"
    erased = next(one for one in samples if "p02" in str(one.path))
    run(capsys, "--gallery", gallery)
    run(capsys, "name", str(erased.path), "Anna", "--gallery", gallery)
    run(capsys, "same", str(erased.path), "p05_door_0.jpg", "--gallery", gallery)
    run(capsys, "name", "p07_door_0.jpg", "Ben", "--gallery", gallery)
    run(capsys, "export", file, "--gallery", gallery)
    with pytest.raises(SystemExit):
        main(["index", "erase", str(gallery), erased.identity])
    for _ in range(2):
        assert run(capsys, "import", file, "--gallery", gallery)[0] == 0
    text = (gallery / "decisions.json").read_text()
    assert "p02" not in text
    assert "Ben" in text
    _, out, _ = run(capsys, "history", "--gallery", gallery)
    assert len({line.split("\t", 1)[1] for line in out.splitlines()}) == len(out.splitlines())  # nothing comes twice


def test_a_name_is_one_printable_line(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--gallery", gallery)
    for name in ("a\tb", "a\nb", "\x1b[31m"):
        code, out, err = run(capsys, "name", "person-3", name, "--gallery", gallery)
        assert (code, out, len(err)) == (1, "", 1)
    assert run(capsys, "name", "person-3", "Zo\u00eb \u540d\u524d O'Brien", "--gallery", gallery)[0] == 0
