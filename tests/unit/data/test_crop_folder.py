"""Folders of crops: every label read from the name, nothing skipped in silence, and a manifest that reads back.

Caught: camera and identity exchanged, a greedy field that swallows the next, queries without a right answer,
a query for every picture, a file left out without a word, and a manifest half written.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.data.crop_folder import Found, compile_pattern, init_manifest
from reid.data.manifest import read_manifest
from reid.errors import DataError
from reid.records import Modality, Sample, Split


def laid(folder: Path, *names: str) -> Path:
    """Files of these names; this module never looks into one."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def labels(found: Found, split: Split = Split.GALLERY) -> list[tuple[str, str, str]]:
    """(name, identity, camera) of the rows of a split, as the manifest on the disk has them."""
    rows = read_manifest(found.manifest)
    assert rows == found.samples
    folder = found.manifest.parent
    return [(s.path.relative_to(folder).as_posix(), s.identity, s.camera) for s in rows if s.split is split]


def test_camera_then_identity(tmp_path: Path) -> None:
    found = init_manifest(laid(tmp_path, "north/anna/1.jpg", "north/anna/2.JPG", "south/anna/1.png", "south/bo/1.jpg"))
    assert found.pattern == "{camera}/{identity}/*"
    assert labels(found) == [
        ("north/anna/1.jpg", "anna", "north"),
        ("north/anna/2.JPG", "anna", "north"),
        ("south/anna/1.png", "anna", "south"),
        ("south/bo/1.jpg", "bo", "south"),
    ]
    # one for each camera of anna; bo is in one camera only and has no right answer
    assert labels(found, Split.QUERY) == [("north/anna/1.jpg", "anna", "north"), ("south/anna/1.png", "anna", "south")]
    assert found.lines() == [
        f"{tmp_path / 'manifest.csv'}: 4 pictures, read as {{camera}}/{{identity}}/*",
        "identities: 2",
        "cameras: north (2), south (2)",
        "queries: 2",
    ]


def test_identity_only(tmp_path: Path) -> None:
    found = init_manifest(laid(tmp_path, "anna/1.jpg", "anna/2.jpg", "bo/1.jpg"), category="dog")
    assert labels(found) == [("anna/1.jpg", "anna", ""), ("anna/2.jpg", "anna", ""), ("bo/1.jpg", "bo", "")]
    assert labels(found, Split.QUERY) == [("anna/1.jpg", "anna", "")]
    assert {sample.category for sample in found.samples} == {"dog"}
    assert "cameras: unknown" in found.lines()
    assert any(line.startswith("cameras are unknown: nothing can be calibrated") for line in found.lines())


def test_pictures_nobody_labelled(tmp_path: Path) -> None:
    found = init_manifest(laid(tmp_path, "1.jpg", "2.webp"))
    assert labels(found) == [("1.jpg", "", ""), ("2.webp", "", "")]
    assert labels(found, Split.QUERY) == []
    assert {"identities: unknown", "cameras: unknown", "queries: 0"} <= set(found.lines())
    assert found.lines()[-1].startswith("identities are unknown")


def test_a_pattern_with_time(tmp_path: Path) -> None:
    laid(tmp_path, "gate/7_2024-05-31_16-20-00.jpg", "gate/12_20240531T162001.jpg")
    found = init_manifest(tmp_path, "{camera}/{identity}_{time}.jpg")
    assert labels(found) == [
        ("gate/12_20240531T162001.jpg", "12", "gate"),
        ("gate/7_2024-05-31_16-20-00.jpg", "7", "gate"),
    ]
    assert [s.time for s in found.samples] == [datetime(2024, 5, 31, 16, 20, 1), datetime(2024, 5, 31, 16, 20)]
    assert found.lines()[-1] == "no identity is seen by two cameras: nothing can be scored across cameras"


def test_a_pattern_as_published_sets_need_it(tmp_path: Path) -> None:
    laid(tmp_path, "bounding_box_test/0002_c1s1_000451_03.jpg", "bounding_box_test/0002_c2s1_000301_01.jpg")
    found = init_manifest(tmp_path, "*/{identity}_c{camera}s*.jpg")
    assert [(identity, camera) for _, identity, camera in labels(found)] == [("0002", "1"), ("0002", "2")]


def test_splits_modalities_and_domains_of_a_pattern(tmp_path: Path) -> None:
    laid(tmp_path, "train/infrared/car/7.png", "query/visible/car/7.png")
    found = init_manifest(tmp_path, "{split}/{modality}/{domain}/{identity}.png")
    assert [(s.split, s.modality, s.category, s.identity) for s in found.samples] == [
        (Split.QUERY, Modality.VISIBLE, "car", "7"),
        (Split.TRAIN, Modality.INFRARED, "car", "7"),
    ]


def test_a_field_twice_must_say_the_same_twice(tmp_path: Path) -> None:
    laid(tmp_path, "c1/c1_7.jpg", "c1/c2_7.jpg")
    with pytest.raises(DataError, match=r"c1/c2_7\.jpg is not named like .* \(1 of 2 pictures are not\)"):
        init_manifest(tmp_path, "{camera}/{camera}_{identity}.jpg")


def test_what_is_no_picture_is_counted_and_what_is_hidden_is_not(tmp_path: Path) -> None:
    laid(tmp_path, "c/a/1.jpg", "c/a/notes.txt", "readme.md", ".cache/b/9.jpg", "c/a/._1.jpg")
    found = init_manifest(tmp_path)
    assert [name for name, _, _ in labels(found)] == ["c/a/1.jpg"]
    assert "left out: 2 files that are not pictures" in found.lines()
    again = init_manifest(tmp_path, overwrite=True)
    assert again == found  # the manifest itself is not counted


@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        ((), None, "no pictures in it; expected files that end in .bmp, .jpeg"),
        (("a/1.jpg", "1.jpg"), None, r"found 1\.jpg, a/1\.jpg; give a pattern such as"),
        (("a/b/c/1.jpg",), None, r"found a/b/c/1\.jpg; give a pattern"),
        (("a/1.jpg",), "{cam}/*", 'unknown field "cam"; did you mean "camera"'),
        (("a/1.jpg",), "{}/*", 'unknown field ""'),
        (("a/1.jpg",), "{camera}/*.png", r"a/1\.jpg is not named like"),
        (("a/000451.jpg",), "{camera}/{time}.jpg", r'"000451" is no time .* write \* in its place'),
        (("a/20241331-162000.jpg",), "{camera}/{time}.jpg", "is no time"),
        (("thermal/7.jpg",), "{modality}/*", 'unknown modality "thermal".* known: visible, infrared'),
        (("test/7.jpg",), "{split}/*", 'unknown split "test".* known: train, query, gallery'),
    ],
)
def test_what_cannot_be_read_is_told_and_nothing_is_written(
    tmp_path: Path, names: tuple[str, ...], pattern: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        init_manifest(laid(tmp_path, *names), pattern)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "manifest.csv").exists()


def test_no_folder_and_a_manifest_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        init_manifest(tmp_path / "nowhere")
    laid(tmp_path, "a/1.jpg", "manifest.csv")
    with pytest.raises(DataError, match="is there already"):
        init_manifest(tmp_path)
    assert (tmp_path / "manifest.csv").read_bytes() == b""


WORD = st.text(st.sampled_from("abc0189-"), min_size=1, max_size=5)


@given(WORD, WORD, WORD)
def test_a_pattern_reads_back_what_a_name_was_made_of(camera: str, identity: str, rest: str) -> None:
    match = compile_pattern("{camera}/{identity}_*.jpg").fullmatch(f"{camera}/{identity}_{rest}.jpg")
    assert match is not None
    assert match.groupdict() == {"camera": camera, "identity": identity}


@given(st.lists(st.tuples(st.sampled_from(["", "c1", "c2"]), st.sampled_from("xyz")), max_size=12))
def test_queries_are_those_that_have_an_answer(rows: list[tuple[str, str]]) -> None:
    """Against the rule said slowly, over every pair of pictures."""
    from reid.data.crop_folder import _queries

    samples = [Sample(Path(str(i)), identity, camera) for i, (camera, identity) in enumerate(rows)]
    expected = set()
    for i, (camera, identity) in enumerate(rows):
        same = [j for j, row in enumerate(rows) if row[1] == identity]
        known = {rows[j][0] for j in same}
        first = min(j for j in same if rows[j][0] == camera) == i
        if first and (len(known) > 1 or (known == {""} and len(same) > 1)):
            expected.add(Path(str(i)))
    found = _queries(samples)
    assert {sample.path for sample in found} == expected
    assert len(found) == len(expected)
    assert all(sample.split is Split.QUERY for sample in found)
