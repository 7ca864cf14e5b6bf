"""validate finds each fault, and nothing else; it finds nothing in sound data.

The tests refuse these wrong variants: a query answered by itself, by its own camera, or by another camera at the same
location; duplicates found by name instead of bytes; a copy in training and test taken for a harmless one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers import published_layouts
from helpers.published_layouts import write_image
from reid.data.manifest import read_manifest, write_manifest
from reid.data.protocols.data_sets import DataSet, Scoring, load_protocol, open_data
from reid.data.protocols.protocol_table import Count, Rule
from reid.evaluation.analysis.validation import Finding, findings_json, validate
from reid.records import Sample, Split

T, Q, G = Split


def sound(root: Path) -> list[Sample]:
    """Two people with a query in camera 1 and a gallery row in camera 2, and one to train on; all images differ."""
    rows = [("a", "1", Q), ("a", "2", G), ("b", "1", Q), ("b", "2", G), ("c", "1", T)]
    samples = []
    for number, (identity, camera, split) in enumerate(rows):
        path = root / f"{number}.png"
        write_image(path, colour=40 * number + 10)
        samples.append(Sample(path, identity, camera, split=split))
    return samples


def findings_of(samples: list[Sample], scoring: Scoring | None = None, **options: bool) -> list[str]:
    findings = validate(DataSet("x", tuple(samples), scoring or Scoring()), **options)
    return [str(finding) for finding in findings if " rows: " not in finding.message]


def test_sound_data(tmp_path: Path) -> None:
    samples = sound(tmp_path)
    done: list[int] = []
    findings = validate(DataSet("x", tuple(samples), Scoring()), progress=done.append, workers=2)
    assert [str(f) for f in findings] == ["note: 5 rows: 1 train, 2 query, 2 gallery", "note: nothing wrong was found"]
    assert sum(done) == 5


def test_queries_without_a_right_answer_by_reason(tmp_path: Path) -> None:
    samples = sound(tmp_path)
    query, row = samples[0], samples[1]

    def unmatched_finding(changed: list[Sample], **kwargs) -> str:
        (line,) = [line for line in findings_of(changed, **kwargs) if "no right answer" in line]
        return line

    assert "1 of 2 queries have no right answer: their identity is not in the gallery" in unmatched_finding(
        [query, *samples[2:]]
    )
    assert str(query.path) in unmatched_finding([query, *samples[2:]])
    assert "their identity is empty" in unmatched_finding([replace(query, identity=""), *samples[1:]])
    assert "own camera (or location) only" in unmatched_finding([query, replace(row, camera="1"), *samples[2:]])
    assert "own camera (or location) only" in unmatched_finding(samples[:2], scoring=Scoring(locations={"2": "1"}))
    assert "only the very same image" in unmatched_finding([query, replace(query, split=G), *samples[2:]])
    assert not [line for line in findings_of(samples) if "no right answer" in line]
    leave_one_out = Scoring(Rule(ignore="itself"))
    assert not [
        line
        for line in findings_of([query, replace(row, camera="1")], scoring=leave_one_out)
        if "no right answer" in line
    ]


def test_data_that_answer_no_query_at_all(tmp_path: Path) -> None:
    samples = sound(tmp_path)
    nothing = "error: no query has a right answer: nothing can be evaluated"
    assert nothing in findings_of([replace(s, camera="1") for s in samples])
    assert nothing not in findings_of([replace(samples[0], identity=""), *samples[1:]])


def test_one_camera_and_no_camera(tmp_path: Path) -> None:
    samples = sound(tmp_path)
    lines = findings_of([samples[0], replace(samples[1], camera="1"), *samples[2:]])
    assert "warning: 1 identities of queries are in one camera only: a (1)" in lines
    lines = findings_of([replace(sample, camera="") for sample in samples])
    assert lines[0].startswith("note: 4 rows have no camera: only the very same image is left out")


def test_missing_and_broken_images(tmp_path: Path) -> None:
    samples = sound(tmp_path)
    samples[0].path.unlink()
    whole = samples[1].path.read_bytes()
    samples[1].path.write_bytes(whole[: len(whole) // 2])
    samples[3].path.write_bytes(b"")
    lines = findings_of(samples)
    assert lines[0] == f"error: 1 images are missing: {samples[0].path}"
    assert lines[1].startswith(f"error: 2 images cannot be read: {samples[1].path}: ")
    assert "3.png: " in lines[1]
    assert findings_of(samples, images=False) == [lines[0]]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0, 2, "error: 1 images are copies of each other under several identities: 0.png = 2.png"),
        (0, 1, "warning: 1 images are copies of each other under other names: 0.png = 1.png"),
    ],
)
def test_copies(first: int, second: int, expected: str, tmp_path: Path) -> None:
    samples = sound(tmp_path)
    samples[second].path.write_bytes(samples[first].path.read_bytes())
    assert findings_of(samples) == [expected]
    assert findings_of(samples, images=False) == ["note: nothing wrong was found"]


def test_copies_in_training_and_test(tmp_path: Path) -> None:
    samples = sound(tmp_path)
    samples[4] = replace(samples[4], identity="")
    samples[4].path.write_bytes(samples[0].path.read_bytes())
    assert findings_of(samples) == ["warning: 1 images are copies of each other in training and test: 0.png = 4.png"]


def test_identities_in_training_and_test(tmp_path: Path) -> None:
    samples = sound(tmp_path)
    samples[4] = replace(samples[4], identity="b")
    assert findings_of(samples)[0].startswith("warning: 1 identities are in training and test")
    other_category = replace(samples[4], category="vehicle")  # vehicle b is not person b
    assert findings_of([*samples[:4], other_category]) == ["note: nothing wrong was found"]


@pytest.mark.parametrize(("gone", "name"), [(Q, "query"), (G, "gallery")])
def test_a_missing_split(gone: Split, name: str, tmp_path: Path) -> None:
    samples = [sample for sample in sound(tmp_path) if sample.split is not gone]
    assert findings_of(samples)[0] == f'error: no row of split "{name}": nothing can be evaluated'


def test_published_counts(tmp_path: Path) -> None:
    data = open_data("market1501", published_layouts.market1501(tmp_path))
    (finding,) = [f for f in validate(data, images=False) if "published" in f.message]
    assert (finding.severity, finding.count) == ("warning", 6)
    assert finding.examples[0] == "Market-1501, train: expected 12936 images, found 9"
    assert str(finding).endswith(", ...")
    counts = {T: Count(images=9, identities=3), Q: Count(images=2), G: Count(images=8, identities=2)}
    whole = replace(data, protocol=load_protocol("market1501").model_copy(update={"counts": counts}))
    assert "note: all counts are those published for Market-1501" in [str(f) for f in validate(whole, images=False)]


def test_a_manifest_from_disk_and_json(tmp_path: Path) -> None:
    samples = sound(tmp_path)
    write_manifest(samples, tmp_path / "manifest.csv")
    findings = validate(DataSet("x", read_manifest(tmp_path / "manifest.csv"), Scoring()))
    assert findings_json(findings)[-1] == {
        "severity": "note", "message": "nothing wrong was found", "count": 1, "examples": ()
    }  # fmt: skip
    assert str(Finding("warning", "m", 5, ("a", "b"))) == "warning: m: a, b, ..."


def test_galleries_that_cannot_be_drawn(tmp_path: Path) -> None:
    root = published_layouts.sysu_mm01(tmp_path)
    data = open_data("sysu_mm01", root)
    (finding,) = [f for f in validate(data, images=False) if f.severity == "error"]
    assert "rand_perm_cam.mat: no such file" in finding.message
    published_layouts.sysu_permutations(root)
    assert not [f for f in validate(data, images=False) if f.severity == "error"]
