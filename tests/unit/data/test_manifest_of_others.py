"""Manifests of other programs: other names of columns, words for missing, spreadsheets, floats and hostile cells."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from reid.data.manifest import ManifestReading, read_manifest, read_table, write_manifest
from reid.data.manifest_columns import MOST_COLUMNS
from reid.errors import DataError
from reid.records import Sample

BASE = "path,identity,split"


def table(folder: Path, *lines: str) -> Path:
    path = folder / "rows.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(folder: Path, *lines: str) -> ManifestReading:
    return read_table(table(folder, *lines))


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize(
    "name",
    ["cam", "CAM", "camid", "camera_id", "cam_id", "CameraID", "Camera Id", "camera-id", "camera_name", "cam no"],
)
def test_other_names_of_the_camera(name: str, tmp_path: Path) -> None:
    found = read(tmp_path, f"path,identity,{name},split", "a.jpg,1,door,query")
    assert found.samples[0].camera == "door"
    assert found.notes == (f'column "{name}" was read as camera',)


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("img_path,pid,split", "a.jpg,7,train", ("identity", "7")),
        ("file,person_id,split", "a.jpg,7,train", ("identity", "7")),
        ("FileName,Label,Set", "a.jpg,7,train", ("identity", "7")),
        ("image,ID,subset", "a.jpg,7,train", ("identity", "7")),
        (f"{BASE},tracklet", "a.jpg,7,train,t1", ("track", "t1")),
        (f"{BASE},TrackID", "a.jpg,7,train,t1", ("track", "t1")),
        (f"{BASE},spectrum", "a.jpg,7,train,Infrared", ("modality", "infrared")),
    ],
)
def test_other_names_of_other_columns(header: str, row: str, expected: tuple[str, str], tmp_path: Path) -> None:
    (sample,) = read(tmp_path, header, row).samples
    assert str(getattr(sample, expected[0])) == expected[1]
    assert (sample.path, sample.split) == (tmp_path / "a.jpg", "train")


def test_the_name_itself_is_read_before_a_synonym(tmp_path: Path) -> None:
    found = read(tmp_path, f"id,camid,{BASE},camera", "1,c9,a.jpg,anna,train,c1")
    assert (found.samples[0].identity, found.samples[0].camera) == ("anna", "c1")
    assert found.notes == ("columns that were not read: id, camid",)


def test_two_synonyms_are_refused(tmp_path: Path) -> None:
    assert '"camid", "cam"' in refusal(table(tmp_path, f"{BASE},camid,cam", "a.jpg,1,train,1,2"))


def test_a_column_that_speaks_of_cameras_is_not_passed_over(tmp_path: Path) -> None:
    assert '"camera_place"' in refusal(table(tmp_path, f"{BASE},camera_place", "a.jpg,1,train,hall"))
    assert read(tmp_path, f"{BASE},camera_place,camera", "a.jpg,1,train,hall,c1").samples[0].camera == "c1"


def test_times_under_another_name(tmp_path: Path) -> None:
    """A column of this name may hold something else, which is said and stops nothing."""
    found = read(tmp_path, f"{BASE},timestamp", "a.jpg,1,train,2024-05-31T16:20:00", "b.jpg,1,train,151")
    assert [sample.time is None for sample in found.samples] == [False, True]
    assert any("timestamp" in note and "1 cells" in note for note in found.notes)


@pytest.mark.parametrize(
    "word",
    [
        "nan",
        "NaN",
        "None",
        "NULL",
        "N/A",
        "NA",
        "-1",
        "-1.0",
        "unknown",
        "Unknown",
        "?",
        "-",
        "<NA>",
        "\u22121",
        "\u20131",
        "\u2015\u2015",
        "#n/a",
        "(Null)",
        "#N/A",
        '="nan"',
    ],
)
def test_words_for_missing(word: str, tmp_path: Path) -> None:
    found = read(tmp_path, f"{BASE},camera", f"a.jpg,{word},train,{word}", "b.jpg,anna,train,door")
    assert [(sample.identity, sample.camera) for sample in found.samples] == [("", ""), ("anna", "door")]
    assert [note.partition(":")[0] for note in found.notes] == ["camera", "identity"]
    assert all("1 times" in note for note in found.notes)


def test_names_that_only_resemble_words_for_missing(tmp_path: Path) -> None:
    found = read(
        tmp_path, BASE, *(f"{number}.jpg,{name},train" for number, name in enumerate(["Nan", "Na", "10", "-2"]))
    )
    assert [sample.identity for sample in found.samples] == ["Nan", "Na", "10", "-2"]
    assert found.notes == ()


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ("c1\u200e", "c1"), ("\ufeffc1", "c1"), ("c\u200b1", "c1"), ("\u00a0c1\u3000", "c1"), ('="0001"', "0001"),
        ("1.0", "1"), ("12.000", "12"), ("1.5", "1.5"), ("Zoe\u0301", "Zo\u00e9"), ("c1\ufe0f", "c1"),
    ],
)  # fmt: skip
def test_labels_have_one_form(cell: str, label: str, tmp_path: Path) -> None:
    (sample,) = read(tmp_path, f"{BASE},camera,track", f"a.jpg,{cell},train,{cell},{cell}").samples
    assert {sample.identity, sample.camera, sample.track} == {label}


def test_paths_are_not_changed(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "Zoé.jpg")
    assert read(tmp_path, BASE, f"{name},1,train").samples[0].path.name == name


def test_parquet_of_others(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    columns = {
        "PATH": ["a.jpg", "b.jpg"], "Pid": [b"0003", "Zoe\u0301".encode()], "CAMERA": [1.0, None],
        "split": ["query", "query"],
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    first, second = read_manifest(path)
    assert (first.identity, first.camera) == ("0003", "1")
    assert (second.identity, second.camera) == ("Zo\u00e9", "")
    columns["Pid"] = [b"\xff\xfe", b"1"]
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert "row 1" in refusal(path)


def test_a_table_with_too_many_columns(tmp_path: Path) -> None:
    path = table(tmp_path, ",".join([BASE, *(f"column{i}" for i in range(20_000))]), "a.jpg,1,train")
    assert f"{MOST_COLUMNS:,}" in refusal(path)
    columns = {f"column{i}": [1] for i in range(MOST_COLUMNS + 1)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
    assert f"{MOST_COLUMNS:,}" in refusal(tmp_path / "m.parquet")
    assert (
        len(read(tmp_path, ",".join([BASE, *(f"x{i}" for i in range(900))]), "a.jpg,1,train" + "," * 900).samples) == 1
    )


@pytest.mark.parametrize("character", ["\x7f", "\x80", "\x9b", "\x1b", "\u2028"])
def test_control_characters_in_labels(character: str, tmp_path: Path) -> None:
    message = refusal(table(tmp_path, BASE, f"a.jpg,an{character}na,train"))
    assert "line 2" in message
    assert character not in message
    with pytest.raises(DataError) as caught:
        write_manifest([Sample(tmp_path / "a.jpg", f"an{character}na")], tmp_path / "m.csv")
    assert character not in str(caught.value)


@pytest.mark.parametrize(
    "label", ["=cmd|' /C calc'!A0", "+1+2", "-2+3+cmd|' /C calc'!A0", "@SUM(A1)", "'=x", "''@y", "＝1"]
)
def test_formulas_do_not_run_and_read_back(label: str, tmp_path: Path) -> None:
    sample = Sample(tmp_path / label.replace("/", ""), label, label)
    write_manifest([sample], tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        for row in list(csv.reader(file))[1:]:
            assert not any(cell.startswith(("=", "+", "-", "@", "＝")) for cell in row)
    assert read_manifest(tmp_path / "m.csv") == (sample,)


def test_numbers_are_written_as_they_are(tmp_path: Path) -> None:
    write_manifest([Sample(tmp_path / "a.jpg", "-5", "+7")], tmp_path / "m.csv")
    assert "a.jpg,-5,+7," in (tmp_path / "m.csv").read_text()


@pytest.mark.parametrize("word", ["nan", "-1", "unknown", "c1\u200e", "1.0"])
def test_a_label_that_would_be_read_otherwise_is_not_written(word: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        write_manifest([Sample(tmp_path / "a.jpg", word)], tmp_path / "m.csv")
    assert "identity" in str(caught.value)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "m.csv")
    assert "pipe" in refusal(tmp_path / "m.csv")
