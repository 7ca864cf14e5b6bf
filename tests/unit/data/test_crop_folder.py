"""Labels of crops are read from their paths, no file is skipped silently, and the manifest reads back.

The tests find these errors: camera and identity exchanged, a field that matches part of the next one, queries without
a right answer, a query for every image, a file left out silently, and a manifest that is half written.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.data.crop_folder import InitResult, _choose_queries, compile_pattern, init_manifest
from reid.data.manifest import read_manifest
from reid.errors import DataError
from reid.records import Modality, Sample, Split


def put_files(folder: Path, *names: str) -> Path:
    """Write empty files of these names, which is enough because labels come from names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def labels(found: InitResult, split: Split = Split.GALLERY) -> list[tuple[str, str, str]]:
    """Return (name, identity, camera) of the rows of a split, as the manifest on the disk has them."""
    rows = read_manifest(found.manifest)
    assert rows == found.samples
    folder = found.manifest.parent
    return [(s.path.relative_to(folder).as_posix(), s.identity, s.camera) for s in rows if s.split is split]


def test_camera_then_identity(tmp_path: Path) -> None:
    found = init_manifest(
        put_files(tmp_path, "north/anna/1.jpg", "north/anna/2.JPG", "south/anna/1.png", "south/bo/1.jpg")
    )
    assert found.pattern == "{camera}/{identity}/*"
    assert labels(found) == [
        ("north/anna/1.jpg", "anna", "north"),
        ("north/anna/2.JPG", "anna", "north"),
        ("south/anna/1.png", "anna", "south"),
        ("south/bo/1.jpg", "bo", "south"),
    ]
    # One for each camera of anna; bo is in one camera only and has no right answer.
    assert labels(found, Split.QUERY) == [("north/anna/1.jpg", "anna", "north"), ("south/anna/1.png", "anna", "south")]
    assert found.lines() == [
        f"{tmp_path / 'manifest.csv'}: 4 images, read as {{camera}}/{{identity}}/*",
        "identities: 2",
        "cameras: north (2), south (2)",
        "queries: 2",
        "rows of category person: 0 train, 2 query, 4 gallery",
    ]


def test_identity_only(tmp_path: Path) -> None:
    found = init_manifest(put_files(tmp_path, "anna/1.jpg", "anna/2.jpg", "bo/1.jpg"), category="dog")
    assert labels(found) == [("anna/1.jpg", "anna", ""), ("anna/2.jpg", "anna", ""), ("bo/1.jpg", "bo", "")]
    assert labels(found, Split.QUERY) == [("anna/1.jpg", "anna", "")]
    assert {sample.category for sample in found.samples} == {"dog"}
    assert "cameras: unknown" in found.lines()
    assert any(line.startswith("cameras are unknown: nothing can be calibrated") for line in found.lines())


def test_images_without_labels(tmp_path: Path) -> None:
    found = init_manifest(put_files(tmp_path, "1.jpg", "2.webp"))
    assert labels(found) == [("1.jpg", "", ""), ("2.webp", "", "")]
    assert labels(found, Split.QUERY) == []
    assert {"identities: unknown", "cameras: unknown", "queries: 0"} <= set(found.lines())
    assert found.lines()[-1].startswith("identities are unknown")


def test_a_pattern_with_time(tmp_path: Path) -> None:
    put_files(tmp_path, "gate/7_2024-05-31_16-20-00.jpg", "gate/12_20240531T162001.jpg")
    found = init_manifest(tmp_path, "{camera}/{identity}_{time}.jpg")
    assert labels(found) == [
        ("gate/12_20240531T162001.jpg", "12", "gate"),
        ("gate/7_2024-05-31_16-20-00.jpg", "7", "gate"),
    ]
    assert [s.time for s in found.samples] == [datetime(2024, 5, 31, 16, 20, 1), datetime(2024, 5, 31, 16, 20)]
    assert found.lines()[-1] == "no identity is seen by two cameras: nothing can be scored across cameras"


def test_a_pattern_for_names_as_in_published_data_sets(tmp_path: Path) -> None:
    put_files(tmp_path, "bounding_box_test/0002_c1s1_000451_03.jpg", "bounding_box_test/0002_c2s1_000301_01.jpg")
    found = init_manifest(tmp_path, "*/{identity}_c{camera}s*.jpg")
    assert [(identity, camera) for _, identity, camera in labels(found)] == [("0002", "1"), ("0002", "2")]


def test_splits_modalities_and_categories_of_a_pattern(tmp_path: Path) -> None:
    put_files(tmp_path, "train/infrared/car/7.png", "query/visible/car/7.png")
    found = init_manifest(tmp_path, "{split}/{modality}/{domain}/{identity}.png")
    assert [(s.split, s.modality, s.category, s.identity) for s in found.samples] == [
        (Split.QUERY, Modality.VISIBLE, "car", "7"),
        (Split.TRAIN, Modality.INFRARED, "car", "7"),
    ]


def test_a_repeated_field_must_have_the_same_value(tmp_path: Path) -> None:
    put_files(tmp_path, "c1/c1_7.jpg", "c1/c2_7.jpg")
    with pytest.raises(DataError, match=r"c1/c2_7\.jpg .*1 of 2"):
        init_manifest(tmp_path, "{camera}/{camera}_{identity}.jpg")


def test_other_files_are_counted_and_hidden_files_are_not(tmp_path: Path) -> None:
    put_files(tmp_path, "c/a/1.jpg", "c/a/notes.txt", "readme.md", ".cache/b/9.jpg", "c/a/._1.jpg")
    found = init_manifest(tmp_path)
    assert [name for name, _, _ in labels(found)] == ["c/a/1.jpg"]
    assert found.other_files == 2
    assert "left out: 2 files that are not images" in found.lines()
    again = init_manifest(tmp_path, overwrite=True)
    assert again == found  # the manifest itself is not counted


@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        ((), None, r"\.bmp, \.jfif, .*\.jpeg"),
        (("a/1.jpg", "1.jpg"), None, r"1\.jpg, a/1\.jpg"),
        (("a/b/c/1.jpg",), None, r"a/b/c/1\.jpg"),
        (("a/1.jpg",), "{cam}/*", '"cam".*"camera"'),
        (("a/1.jpg",), "{}/*", '""'),
        (("a/1.jpg",), "{camera}/*.png", r"a/1\.jpg"),
        (("a/000451.jpg",), "{camera}/{time}.jpg", '"000451"'),
        (("a/20241331-162000.jpg",), "{camera}/{time}.jpg", "20241331-162000"),
        (("thermal/7.jpg",), "{modality}/*", '"thermal".*visible, infrared'),
        (("test/7.jpg",), "{split}/*", '"test".*train, query, gallery'),
    ],
)
def test_after_an_error_nothing_is_written(
    tmp_path: Path, names: tuple[str, ...], pattern: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        init_manifest(put_files(tmp_path, *names), pattern)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "manifest.csv").exists()


def test_a_missing_folder_and_an_existing_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        init_manifest(tmp_path / "nowhere")
    put_files(tmp_path, "a/1.jpg", "manifest.csv")
    with pytest.raises(DataError, match=r"manifest\.csv"):
        init_manifest(tmp_path)
    assert (tmp_path / "manifest.csv").read_bytes() == b""


WORD = st.text(st.sampled_from("abc0189-"), min_size=1, max_size=5)


@given(WORD, WORD, WORD)
def test_a_pattern_reads_back_the_parts_of_a_name(camera: str, identity: str, rest: str) -> None:
    match = compile_pattern("{camera}/{identity}_*.jpg").fullmatch(f"{camera}/{identity}_{rest}.jpg")
    assert match is not None
    assert match.groupdict() == {"camera": camera, "identity": identity}


@given(st.lists(st.tuples(st.sampled_from(["", "c1", "c2"]), st.sampled_from("xyz")), max_size=12))
def test_queries_are_the_first_images_that_have_an_answer(rows: list[tuple[str, str]]) -> None:
    """The queries are those that the rule gives when it looks at every pair of images."""
    samples = [Sample(Path(str(i)), identity, camera) for i, (camera, identity) in enumerate(rows)]
    expected = set()
    for i, (camera, identity) in enumerate(rows):
        same = [j for j, row in enumerate(rows) if row[1] == identity]
        known = {rows[j][0] for j in same}
        first = min(j for j in same if rows[j][0] == camera) == i
        if first and (len(known) > 1 or (known == {""} and len(same) > 1)):
            expected.add(Path(str(i)))
    found = _choose_queries(samples)
    assert {sample.path for sample in found} == expected
    assert len(found) == len(expected)
    assert all(sample.split is Split.QUERY for sample in found)


def test_a_manifest_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    put_files(tmp_path, "north/anna/1.jpg", "south/anna/2.jpg")
    monkeypatch.setattr("reid.data.manifest.write_whole", full)
    with pytest.raises(DataError, match=r"manifest\.csv: cannot be written \(No space left on device\)"):
        init_manifest(tmp_path)
