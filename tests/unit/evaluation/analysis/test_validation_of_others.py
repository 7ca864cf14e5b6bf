"""validate says what it took a table for: columns, missing words, labels that look alike, files in several rows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from helpers.published_layouts import write_image
from reid.data.protocols.data_sets import DataSet, Scoring, open_data
from reid.evaluation.analysis.validation import Finding, validate
from reid.records import Sample, Split

Q, G = Split.QUERY, Split.GALLERY


def images(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        write_image(path, colour=40 * number + 10)
    return paths


def of_samples(samples: list[Sample]) -> list[Finding]:
    return list(validate(DataSet("x", tuple(samples), Scoring()), images=False))


def of_table(folder: Path, *lines: str) -> list[str]:
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(finding) for finding in validate(open_data(str(folder / "rows.csv")), images=False)]


def test_columns_and_words_are_named(tmp_path: Path) -> None:
    images(tmp_path, "1.png", "2.png", "3.png")
    lines = of_table(
        tmp_path, "path,pid,camid,split,weather", "1.png,a,1,query,x", "2.png,a,2,gallery,x", "3.png,nan,2,gallery,x"
    )
    assert 'note: column "pid" was read as identity' in lines
    assert 'note: column "camid" was read as camera' in lines
    assert "note: columns that were not read: weather" in lines
    assert 'note: identity: taken for unknown: 1 times "nan"' in lines
    assert lines[-1] == "note: nothing wrong was found"


def test_a_file_with_and_without_an_identity_is_named(tmp_path: Path) -> None:
    one, two = images(tmp_path, "1.png", "2.png")
    found = of_samples([Sample(one, "a", "1", split=Q), Sample(one, "", "2"), Sample(two, "a", "2")])
    (warning,) = [
        finding for finding in found if finding.severity == "warning" and "without an identity" in finding.message
    ]
    assert warning.examples == (str(one),)


def test_labels_that_look_alike(tmp_path: Path) -> None:
    one, two, three = images(tmp_path, "1.png", "2.png", "3.png")
    found = of_samples([Sample(one, "anna", "c1", split=Q), Sample(two, "Anna", "C1"), Sample(three, "anna", "c 1")])
    warnings = [finding for finding in found if finding.severity == "warning"]
    assert ("anna = Anna",) in [finding.examples for finding in warnings]
    assert ("c1 = C1 = c 1",) in [finding.examples for finding in warnings]
    dashes = of_samples([Sample(one, "a", "c-1", split=Q), Sample(two, "a", "c\u20131"), Sample(three, "a", "c_1")])
    assert ("c-1 = c\u20131 = c_1",) in [finding.examples for finding in dashes]
    same = of_samples([Sample(one, "anna", "c1", split=Q), Sample(two, "anna", "c2"), Sample(three, "11", "c2")])
    assert not [finding for finding in same if "spellings" in finding.message]


def test_a_file_under_several_identities_cameras_and_names(tmp_path: Path) -> None:
    one, two = images(tmp_path, "1.png", "2.png")
    (tmp_path / "hard.png").hardlink_to(one)
    (tmp_path / "link.png").symlink_to(one)
    found = of_samples([Sample(one, "a", "1", split=Q), Sample(one, "b", "1"), Sample(two, "a", "2")])
    (error,) = [finding for finding in found if finding.severity == "error"]
    assert error.examples == (f"{one} (a, b)",)
    for name in ("hard.png", "link.png", "x/../1.png"):
        (tmp_path / "x").mkdir(exist_ok=True)
        found = of_samples([Sample(one, "a", "1", split=Q), Sample(tmp_path / name, "a", "2"), Sample(two, "a", "3")])
        warnings = [finding.examples for finding in found if finding.severity == "warning"]
        assert (f"{one} (1, 2)",) in warnings
        assert (f"{one} = {tmp_path / name}",) in warnings
    whole = validate(DataSet("x", (Sample(one, "a", "1", split=Q), Sample(tmp_path / "hard.png", "a", "1")), Scoring()))
    assert not [finding for finding in whole if "copies" in finding.message]
    assert any("only the very same image" in finding.message for finding in whole)


def test_the_same_image_as_query_and_gallery_is_nothing_wrong(tmp_path: Path) -> None:
    one, two = images(tmp_path, "1.png", "2.png")
    rows = [Sample(one, "a", "1", split=Q), Sample(one, "a", "1"), Sample(two, "a", "2")]
    assert [finding.severity for finding in of_samples(rows)] == ["note", "note"]


def test_an_unlabelled_gallery_is_nothing_wrong(tmp_path: Path) -> None:
    one, two = images(tmp_path, "1.png", "2.png")
    found = of_samples([Sample(one, "", "1"), Sample(two, "", "2")])
    assert {finding.severity for finding in found} == {"note"}
    assert any("identities are unknown" in finding.message for finding in found)


def test_times_with_and_without_a_zone(tmp_path: Path) -> None:
    one, two = images(tmp_path, "1.png", "2.png")
    times = [datetime(2024, 5, 1), datetime(2024, 5, 1, tzinfo=UTC)]
    found = of_samples([Sample(path, "", "yard", time=time) for path, time in zip((one, two), times, strict=True)])
    (warning,) = [finding for finding in found if finding.severity == "warning"]
    assert warning.examples == ("yard",)
    other = of_samples(
        [Sample(path, "", str(time.tzinfo), time=time) for path, time in zip((one, two), times, strict=True)]
    )
    assert {finding.severity for finding in other} == {"note"}
