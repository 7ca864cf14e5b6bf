"""The text table and the JSON of a report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reid.errors import DataError
from reid.evaluation import Report, Result, market_metrics, report_json, report_table, write_reports
from reid.records import Sample


@pytest.fixture
def report():
    eye = np.eye(4, dtype=np.float32)
    metrics = market_metrics(
        eye[:3],
        eye[[0, 2, 1, 3]],
        query_identities=["a", "b", "nobody"],
        gallery_identities=["a", "b", "x", "y"],
        query_cameras=["1", "1", "1"],
        gallery_cameras=["2", "2", "2", "2"],
    )
    unmatched = (Sample(Path("crops/7.jpg"), "nobody"),)
    result = Result("person", "infrared->infrared", metrics, 3, 4, unmatched)
    return Report("street", "c0ffee", (result,), ("boat all: " + "a long reason " * 10,))


def test_table(report):
    lines = report_table(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [
        "category",
        "direction",
        "rank-1",
        "rank-5",
        "rank-10",
        "mAP",
        "mINP",
        "queries",
        "gallery",
    ]
    # b is behind the row that has its vector and, at worst, behind the other one that ties with it
    assert lines[2].split() == ["person", "infrared->infrared", "50.0", "100.0", "100.0", "62.5", "62.5", "3", "4"]
    text = " ".join(" ".join(lines).split())
    stamps = [
        "protocol street, rule market, ties worst case",
        "fingerprint c0ffee",
        "3 query identities, 4 in the gallery; 1 queries without a right answer",
        "not scored: boat all: a long reason",
    ]
    for stamp in stamps:
        assert stamp in text


def test_the_widest_line_fits(report):
    result = report.results[0]
    metrics = result.metrics
    object.__setattr__(metrics, "queries", 1_234_567)
    object.__setattr__(metrics, "gallery", 7_654_321)
    wide = Report("street", "c0ffee", (Result("a long category", result.direction, metrics, 3, 4, ()),))
    line = report_table(wide).splitlines()[2]
    assert len(line) == 80
    assert line.split()[-2:] == ["1234567", "7654321"]


def test_json_has_fractions_and_the_agreed_keys(report):
    entry = report_json(report)["results"][0]
    agreed = {"protocol", "direction", "mAP", "mINP", "rank1", "rank5", "rank10", "queries", "queries_without_match",
              "gallery", "fingerprint", "domain", "cmc"}  # fmt: skip
    assert agreed <= entry.keys()
    assert (entry["mAP"], entry["rank1"], entry["rank5"], entry["rank10"]) == (0.625, 0.5, 1.0, 1.0)
    assert (entry["protocol"], entry["direction"], entry["fingerprint"]) == ("street", "infrared->infrared", "c0ffee")
    assert (entry["queries"], entry["queries_without_match"], entry["gallery"]) == (3, 1, 4)
    assert entry["unmatched_queries"] == [str(Path("crops/7.jpg"))]
    assert len(entry["cmc"]) == 50
    assert entry["cmc"][:4] == [0.5, 0.5, 0.5, 1.0]


def test_written_json_reads_back(report, tmp_path):
    path = tmp_path / "runs" / "report.json"
    write_reports([report, replace(report, protocol="other street")], path)
    written = json.loads(path.read_text())
    assert [entry["protocol"] for entry in written["results"]] == ["street", "other street"]
    assert written["results"][:1] == report_json(report)["results"]
    assert [note.split(":")[0] for note in written["notes"]] == ["street", "other street"]
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_a_path_that_cannot_be_written_is_one_clear_line(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"report\.json"):
        write_reports([report], tmp_path / "file" / "report.json")


def test_the_stamp(report):
    """The table and the JSON state what was computed, and how the vectors came about."""
    stamped = replace(
        report,
        variant={"trial": "3"},
        settings={"ignore": "itself", "unmatched": "zero"},
        provenance={"neck": "bnneck", "flip": False},
        version="9.9",
    )
    text = " ".join(report_table(stamped).split())
    for stamp in (
        "protocol street, trial 3, rule market",
        "fingerprint c0ffee; neck bnneck; flip no; version 9.9",
        "1 queries without a right answer (counted as 0)",
        "gallery: all gallery rows",
        "R-precision 50.0, MAP@R 50.0",
        "person: pairs of a query and a gallery row left out: none",
    ):
        assert stamp in text
    entry = report_json(stamped)["results"][0]
    assert (entry["variant"], entry["made"]["neck"], entry["version"]) == ({"trial": "3"}, "bnneck", "9.9")
    assert (entry["queries_valid"], entry["pairs_left_out"], entry["gallery_source"]) == (2, 0, "all gallery rows")
    assert (entry["reranking"], entry["trials"], entry["per_query"], entry["intervals"]) == ("", [], {}, {})


def test_pairs_left_out_are_counted_by_direction(report):
    result = report.results[0]
    one = replace(report, results=(replace(result, left_out=1234),))
    assert f"{result.category}: pairs of a query and a gallery row left out: 1,234" in " ".join(
        report_table(one).split()
    )
    ways = [replace(result, direction=f"{name}->visible", left_out=count) for name, count in (("x", 0), ("y", 7))]
    again = replace(ways[1], reranking="k-reciprocal, k1 20, k2 6, lambda 0.3")
    several = replace(report, results=(*ways, again, replace(result, category="car", trials=(result.metrics,) * 2)))
    text = " ".join(report_table(several).split())
    assert f"{result.category}: pairs of a query and a gallery row left out: y->visible 7 " in text
    assert "car: pairs of a query and a gallery row left out in all trials: none" in text


def test_trials_and_queries_are_listed(report):
    result = report.results[0]
    samples = tuple(Sample(Path(f"/data/q/{name}.jpg"), name) for name in ("a", "b", "nobody"))
    several = replace(report, results=(replace(result, trials=(result.metrics,) * 2, query_samples=samples),))
    text = " ".join(report_table(several).split())
    assert "mean of 2 trials, rank-1 50.0 to 50.0, mAP 62.5 to 62.5" in text
    assert "±: half the width of the 95 % interval" in text
    low, high = several.results[0].intervals()["mAP"].low, several.results[0].intervals()["mAP"].high
    assert f"±{50 * (high - low):.1f}" in text
    entry = report_json(several)["results"][0]
    assert [trial["mAP"] for trial in entry["trials"]] == [0.625, 0.625]
    assert entry["per_query"] == {
        "picture": ["a.jpg", "b.jpg", "nobody.jpg"],
        "identity": ["a", "b", "nobody"],
        "average_precision": [1.0, 0.25, None],
        "first_match": [1, 4, None],
    }
    low, high = entry["intervals"]["mAP"]
    assert low <= entry["mAP"] <= high
    json.dumps(entry, allow_nan=False)


def test_a_reranked_line_stands_below_the_plain_one(report):
    result = report.results[0]
    both = replace(report, results=(result, replace(result, reranking="k-reciprocal, k1 20, k2 6, lambda 0.3")))
    lines = report_table(both).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[3].startswith(" " * 12 + "re-ranked  ")
    assert "re-ranked: k-reciprocal, k1 20, k2 6, lambda 0.3" in " ".join(" ".join(lines).split())
