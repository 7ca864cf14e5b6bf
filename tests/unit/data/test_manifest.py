"""A written manifest reads back the same, and every error is one line that names the file and the line."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.data.label_text import clean_label, means_unknown
from reid.data.manifest import COLUMNS, check_files, read_manifest, write_manifest
from reid.errors import DataError
from reid.records import Modality, Sample, Split

HEADER = ",".join(COLUMNS)
# Printable text of any script with commas, quotes and signs of formulas; outer blanks are not part of a label.
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8) | st.sampled_from(
    ["a,b", 'a"b', "a b", "0007", "=1+2", "'=x", "''-y", "+44 1", "-5", "@a", "-x/b"]
)
LABELS = TEXT.map(clean_label).filter(lambda text: not means_unknown(text))
NAMES = TEXT.filter(lambda text: text not in ("", ".", "..") and "/" not in text)
TIMES = st.none() | st.datetimes(timezones=st.sampled_from([None, datetime.UTC]))


def samples_in(folder: Path) -> st.SearchStrategy[list[Sample]]:
    sample = st.builds(
        Sample,
        path=st.lists(NAMES, min_size=1, max_size=3).map(lambda names: folder.joinpath(*names)),
        identity=LABELS,
        camera=LABELS,
        modality=st.sampled_from(Modality),
        category=LABELS.filter(bool),
        split=st.sampled_from(Split),
        time=TIMES,
    )
    return st.lists(sample, min_size=1, max_size=8, unique_by=lambda s: (s.path, s.split))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifest")


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
@settings(deadline=None, max_examples=50)  # the first one imports pyarrow
@given(data=st.data())
def test_round_trip(name: str, folder: Path, data: st.DataObject) -> None:
    samples = data.draw(samples_in(folder))
    write_manifest(samples, folder / name)
    assert read_manifest(folder / name) == tuple(samples)
    assert [path.name for path in folder.iterdir() if name in path.name] == [name]  # no partial file is left behind


def write(folder: Path, *lines: str) -> Path:
    path = folder / "rows.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_written_paths_are_relative_so_that_the_folder_may_move(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "set/images/a.jpg", "1", split=Split.TRAIN)
    write_manifest([sample], tmp_path / "set/manifest.csv")
    assert (tmp_path / "set/manifest.csv").read_text().splitlines() == [
        HEADER,
        "images/a.jpg,1,,visible,person,train",
    ]
    (tmp_path / "set").rename(tmp_path / "moved")
    assert read_manifest(tmp_path / "moved/manifest.csv")[0].path == tmp_path / "moved/images/a.jpg"


def test_an_image_outside_the_folder(tmp_path: Path) -> None:
    image = tmp_path / "images/a.jpg"
    image.parent.mkdir()
    image.write_bytes(b"x")
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/er")  # here ".." leads out of the target of the link
    write_manifest([Sample(image, "1")], tmp_path / "link/manifest.csv")
    assert "../../images/a.jpg," in (tmp_path / "link/manifest.csv").read_text()
    assert read_manifest(tmp_path / "link/manifest.csv")[0].path.samefile(image)


def test_a_relative_manifest_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest([Sample(Path("images/a.jpg"), "1")], Path("manifest.csv"))
    assert read_manifest(Path("manifest.csv"))[0].path == Path("images/a.jpg")


def test_optional_columns(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, "split,path,identity", "query,a.jpg,7")) == (
        Sample(tmp_path / "a.jpg", "7", "", Modality.VISIBLE, "person", Split.QUERY, None),
    )


def test_tables_that_spreadsheets_write(tmp_path: Path) -> None:
    """They add a byte-order mark, carriage returns, capitals, blanks after commas, empty lines and other columns."""
    path = tmp_path / "rows.csv"
    text = 'Path, Identity ,Camera,Modality,Split,weather\r\n"a,b.jpg", 7 ,c1,,gallery,rain\r\n\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_manifest(path) == (Sample(tmp_path / "a,b.jpg", "7", "c1", split=Split.GALLERY),)


def test_the_same_image_as_query_and_in_the_gallery(tmp_path: Path) -> None:
    samples = read_manifest(write(tmp_path, HEADER, "a.jpg,7,c1,,,query", "a.jpg,7,c1,,,gallery"))
    assert [sample.split for sample in samples] == [Split.QUERY, Split.GALLERY]


def test_a_parquet_table_of_pandas(tmp_path: Path) -> None:
    """Numbers, missing cells and whole floats become the text that a CSV would hold."""
    table = {
        "path": ["a.jpg", "b.jpg", "c.jpg"],
        "identity": [12, 13, 14],
        "camera": [3.0, None, float("nan")],
        "modality": ["infrared", None, None],
        "split": ["train", "train", "train"],
        "time": [datetime.datetime(2024, 5, 31, 16, 20), None, None],
        "score": [0.5, 0.25, 0.125],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "m.parquet")
    first, second, third = read_manifest(tmp_path / "m.parquet")
    assert (first.identity, first.camera, first.modality) == ("12", "3", Modality.INFRARED)
    assert first.time == datetime.datetime(2024, 5, 31, 16, 20)
    for row in (second, third):
        assert (row.camera, row.modality, row.time) == ("", Modality.VISIBLE, None)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["path,identity", "a.jpg,1"], "column split"),
        (["split", "train"], "path, identity"),
        ([""], "path, identity, split"),
        ([HEADER], "no rows"),
        ([HEADER, "", ""], "no rows"),
        ([HEADER, "a.jpg,1,c,visible,person,train", "b.jpg,1,c,visible,train"], "line 3: expected 6"),
        ([HEADER, ",1,c,visible,person,train"], "line 2: the path"),
        ([HEADER, "a.jpg,1,c,infra-red,person,train"], 'line 2: unknown modality "infra-red"'),
        ([HEADER, "a.jpg,1,c,,person,test"], 'line 2: unknown split "test"'),
        ([HEADER, "a.jpg,1,c,,person,"], 'line 2: unknown split ""'),
        ([HEADER, "a.jpg,1,,,,train", "b.jpg,1,,,,train", "./a.jpg,2,,,,train"], "line 4: ./a.jpg"),
        ([HEADER, "", "a.jpg,1,,,,train", "a.jpg,1,,,,train"], "line 3"),
        ([HEADER + ",time", "a.jpg,1,,,,train,yesterday"], 'line 2: time "yesterday"'),
        (["path,identity,cameras,split", "a.jpg,1,c,train"], '"cameras"; did you mean "camera"'),
        (["path,path,identity,split", "a,b,1,train"], "column path"),
        ([HEADER, 'a.jpg,"1,c,,person,train'], "line 2"),
        (['"path,identity'], "line 1"),
        ([HEADER, "a.jpg,1,do\x00or,visible,person,train"], "line 2: camera 'do\\x00or'"),
        ([HEADER, 'a.jpg,"1\n2",,,,train'], "line 2: identity '1\\n2'"),
    ],
)
def test_errors_in_a_table(lines: list[str], expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, *lines)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message


def test_line_numbers_count_lines_inside_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, "path,identity,split,note", 'a.jpg,1,train,"two', 'lines"', "b.jpg,1,nowhere,")
    with pytest.raises(DataError, match="line 4"):
        read_manifest(path)


def test_files_that_are_not_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(f"{HEADER}\nm\xfcller.jpg,1,,,,train\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_manifest(tmp_path / "latin.csv")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="Parquet"):
        read_manifest(tmp_path / "m.parquet")
    pyarrow.parquet.write_table(
        pyarrow.table({"path": ["a"], "identity": ["1"], "split": ["x"]}), tmp_path / "n.parquet"
    )
    with pytest.raises(DataError, match=r'row 1: .*"x"'):
        read_manifest(tmp_path / "n.parquet")


@pytest.mark.parametrize("identity", [" 7", "7\n", "a\tb", "\udcff"])
def test_labels_that_would_not_read_back_are_not_written(identity: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest([Sample(tmp_path / "a.jpg", "7")], path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="identity"):
        write_manifest([Sample(tmp_path / "a.jpg", identity)], path)
    assert path.read_bytes() == before


def test_a_failed_write_keeps_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest([Sample(tmp_path / "a.jpg", "7")], path)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_manifest([Sample(tmp_path / "b.jpg", "8")], path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.csv"]


def test_check_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    present = Sample(tmp_path / "a.jpg")
    check_files([present])
    missing = [Sample(tmp_path / "b.jpg"), Sample(tmp_path / "c.jpg"), Sample(tmp_path / "b.jpg", split=Split.QUERY)]
    with pytest.raises(DataError, match=r"b\.jpg.*2 of 3"):
        check_files([present, *missing])


# --- crops that no camera took --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
def test_generated_crops_stay_marked(name: str, tmp_path: Path) -> None:
    samples = [Sample(tmp_path / "1.jpg", split=Split.TRAIN), Sample(tmp_path / "2.jpg", split="train", generated=True)]
    write_manifest(samples, tmp_path / name)
    assert [sample.generated for sample in read_manifest(tmp_path / name)] == [False, True]
    write_manifest(samples[:1], tmp_path / name)
    assert read_manifest(tmp_path / name) == tuple(samples[:1])
    if name.endswith("csv"):
        assert "generated" not in (tmp_path / name).read_text()  # other manifests have the columns that they had


@pytest.mark.parametrize(
    ("cell", "generated"), [("yes", True), ("TRUE", True), ("1", True), ("no", False), ("", False)]
)
def test_words_of_the_column_generated(cell: str, generated: bool, tmp_path: Path) -> None:
    path = write(tmp_path, "path,identity,split,generated", f"1.jpg,anna,train,{cell}")
    assert [sample.generated for sample in read_manifest(path)] == [generated]


@pytest.mark.parametrize("split", ["query", "gallery"])
def test_a_generated_crop_is_for_training_only(split: str, tmp_path: Path) -> None:
    path = write(tmp_path, "path,identity,split,generated", "1.jpg,anna,train,yes", f"2.jpg,anna,{split},yes")
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert "line 3" in str(caught.value)
    assert split in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError):
        Sample(tmp_path / "2.jpg", split=split, generated=True)


def test_another_column_named_generated_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "path,identity,split,generated", "1.jpg,anna,query,2024-05-01")
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert "2024-05-01" in str(caught.value)
