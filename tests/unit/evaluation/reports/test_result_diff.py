"""Two result files are compared if they measured the same thing, and refused with the reason otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.angles import embeddings, rows
from reid.data.protocols.data_sets import Scoring
from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.evaluation import Reranking, evaluate, write_reports
from reid.evaluation.reports.diff_table import comparison_table
from reid.evaluation.reports.result_diff import compare_files, comparison_json, unpaired_rerankings
from reid.records import Split

Q, G = Split.QUERY, Split.GALLERY
QUERIES = [(name, "1", 0) for name in "abcdefgh"]


def written(
    path: Path,
    right: int,
    scoring: Scoring | None = None,
    queries: list | None = None,
    reranking: Reranking | None = None,
    score_norm: str = "none",
    **provenance,
) -> Path:
    """Write results of eight people; the first ``right`` have their row first (AP 1), the others second (AP 1/2)."""
    pairs = []
    for number, (name, camera, degrees) in enumerate(queries or QUERIES):
        offset = 40 * number - 140
        pairs += rows(Q, (name, camera, degrees + offset))
        pairs += rows(G, (name, "2", offset + (2 if number < right else 8)), (name + "x", "2", offset + 5))
    report = evaluate(
        embeddings(pairs),
        protocol="p",
        scoring=scoring,
        provenance=provenance,
        reranking=reranking,
        score_norm=score_norm,
    )
    write_reports([report], path)
    return path


def test_a_fair_comparison(tmp_path: Path) -> None:
    """Two right against six: mAP 10/16 and 14/16, rank-1 2/8 and 6/8; four queries won, none lost."""
    pairs = compare_files(written(tmp_path / "a.json", 2), written(tmp_path / "b.json", 6))
    table = comparison_table(pairs)
    assert max(map(len, table.splitlines())) <= 80
    assert [line.split() for line in table.splitlines() if "rank1 " in line] == [["rank1", "25.0", "75.0", "+50.0"]]
    assert [line.split() for line in table.splitlines() if line.startswith("  mAP   ")] == [
        ["mAP", "62.5", "87.5", "+25.0"]
    ]
    assert "better on 4, worse on 0 queries" in table
    (entry,) = comparison_json(pairs)["pairs"]
    assert entry["mAP"] == {"before": 0.625, "after": 0.875, "change": 0.25}
    paired = entry["paired_mAP"]
    assert (paired["wins"], paired["losses"], paired["draws"]) == (4, 0, 4)
    assert paired["low"] <= 0.25 <= paired["high"]
    assert 0.05 < paired["p_value"] < 0.25  # four of four in one direction: 2 / 2**4
    assert f"p {paired['p_value']:.3f}\n" in table
    json.dumps(entry)


def test_a_tiny_p_value_is_not_written_as_nothing(tmp_path: Path) -> None:
    (pair,) = compare_files(written(tmp_path / "a.json", 2), written(tmp_path / "b.json", 6))
    assert pair.paired is not None
    tiny = replace(pair, paired=replace(pair.paired, p_value=0.0001, wins=99999, losses=99999))
    table = comparison_table([tiny])
    assert "p < 0.001\n" in table
    assert "p 0.000" not in table
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize(
    ("scoring", "reason"),
    [
        (Scoring(Rule(precision="trapezoid")), "market and market precision=trapezoid"),
        (Scoring(Rule(ties="mean")), "market and market ties=mean"),
        (Scoring(variant={"split": "2"}), "variant.*split"),
    ],
)
def test_what_was_measured_otherwise_is_refused(scoring: Scoring, reason: str, tmp_path: Path) -> None:
    first, second = written(tmp_path / "a.json", 2), written(tmp_path / "b.json", 2, scoring)
    with pytest.raises(DataError, match=reason) as caught:
        compare_files(first, second)
    assert "cannot be compared" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_queries_are_refused(tmp_path: Path) -> None:
    first = written(tmp_path / "a.json", 2)
    fewer = written(tmp_path / "b.json", 2, queries=QUERIES[:5])
    with pytest.raises(DataError, match="8 and 5"):
        compare_files(first, fewer)
    others = written(tmp_path / "c.json", 2, queries=[*QUERIES[:7], ("z", "1", 0)])
    with pytest.raises(DataError, match="queries of p"):
        compare_files(first, others)


def test_other_weights_are_compared(tmp_path: Path) -> None:
    """That is what comparing is for: neck, flip and fingerprint may differ."""
    first = written(tmp_path / "a.json", 2, neck="bnneck")
    assert compare_files(first, written(tmp_path / "b.json", 3, neck="none", flip=True))


def test_files_that_are_no_results(tmp_path: Path) -> None:
    first = written(tmp_path / "a.json", 2)
    with pytest.raises(DataError, match=r"b\.json: cannot be read"):
        compare_files(first, tmp_path / "b.json")
    for text in ("hello", "[]", '{"results": [{"protocol": "p"}]}', '{"results": 3}'):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(DataError, match=r"b\.json: .*not the results"):
            compare_files(first, tmp_path / "b.json")


@pytest.mark.parametrize(
    "harm",
    [
        lambda entry: entry.pop("rank1"),
        lambda entry: entry.update(mAP="x"),
        lambda entry: entry.update(per_query=3),
        lambda entry: entry["per_query"].pop("identity"),
        lambda entry: entry["per_query"]["average_precision"].pop(),
    ],
)
def test_a_damaged_result_is_one_line(harm: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    first, second = written(tmp_path / "a.json", 2), written(tmp_path / "b.json", 2)
    content = json.loads(second.read_text())
    del content["check"]  # version 0.1.0 wrote none
    harm(content["results"][0])
    second.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"b\.json: .*not the results"):
        compare_files(first, second)


def test_results_older_than_a_setting_are_compared(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a.json", 2), written(tmp_path / "b.json", 2)
    content = json.loads(first.read_text())
    del content["check"], content["results"][0]["settings"]["ranked"]
    first.write_text(json.dumps(content))
    assert compare_files(first, second)


def test_a_changed_digit_is_noticed(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a.json", 2), written(tmp_path / "b.json", 2)
    content = json.loads(second.read_text())
    second.write_text(json.dumps(content, sort_keys=True))
    assert compare_files(first, second), "another layout is the same"
    content["results"][0]["rank1"] = 0.123
    second.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"b\.json: damaged"):
        compare_files(first, second)


def test_normalized_results_are_compared_with_normalized_ones(tmp_path: Path) -> None:
    plain, both = written(tmp_path / "a.json", 2), written(tmp_path / "b.json", 6, score_norm="csls")
    (pair,) = compare_files(plain, both)
    assert (pair.before["score_norm"], pair.after["score_norm"]) == ("none", "none")
    (line,) = unpaired_rerankings(plain, both)
    assert str(both) in line
    assert "csls" in line
    again = written(tmp_path / "c.json", 3, score_norm="csls")
    assert [pair.after["score_norm"] for pair in compare_files(both, again)] == ["none", "csls"]
    old = json.loads(plain.read_text())
    del old["check"]
    for entry in old["results"]:  # as version 0.1.0 wrote it
        del entry["score_norm"], entry["score_norm_stamp"], entry["identification"]
        entry["reranking"] = None
    plain.write_text(json.dumps(old))
    assert len(compare_files(plain, both)) == 1


def test_plain_results_are_compared_where_only_one_file_has_reranked_ones(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.json", 2)
    both = written(tmp_path / "b.json", 6, reranking=Reranking(neighbours=1))
    (pair,) = compare_files(plain, both)
    assert (pair.before["reranking"], pair.after["reranking"]) == ("", "")
    (line,) = unpaired_rerankings(plain, both)
    assert str(both) in line
    assert "expansion over 1" in line
    again = written(tmp_path / "c.json", 3, reranking=Reranking(neighbours=1))
    assert [bool(pair.before["reranking"]) for pair in compare_files(both, again)] == [False, True]
    assert unpaired_rerankings(both, again) == []
    other = written(tmp_path / "d.json", 3, reranking=Reranking(neighbours=2))
    assert [pair.after["reranking"] for pair in compare_files(both, other)] == [""]
    assert len(unpaired_rerankings(both, other)) == 2


def cells(table: str, name: str) -> list[list[str]]:
    """Return the words of the lines that begin with ``name``, each followed by those of the next line."""
    lines = table.splitlines()
    return [
        [*line.split()[1:], *lines[number + 1].split()]
        for number, line in enumerate(lines)
        if line.startswith(f"  {name} ")
    ]


def test_three_files_are_three_columns_with_differences_to_the_first(tmp_path: Path) -> None:
    """Two, six and no right answers of eight: rank-1 25, 75 and 0 percent, mAP 62.5, 87.5 and 50 percent."""
    files = [written(tmp_path / f"{right}.json", right) for right in (2, 6, 0)]
    pairs = compare_files(*files)
    assert [pair.positions for pair in pairs] == [(0, 1), (0, 2)]
    table = comparison_table(pairs)
    assert cells(table, "rank1") == [["25.0", "75.0", "0.0", "+50.0", "-25.0"]]
    assert cells(table, "mAP")[0] == ["62.5", "87.5", "50.0", "+25.0", "-12.5"]
    assert cells(table, "better on") == [["on", "4", "0", "worse", "on", "0", "2"]]
    assert [line.split() for line in table.splitlines()[:3]] == [[str(n + 1), str(f)] for n, f in enumerate(files)]
    entries = comparison_json(pairs)["pairs"]
    assert [entry["files"] for entry in entries] == [[str(files[0]), str(files[1])], [str(files[0]), str(files[2])]]
    assert [entry["mAP"]["change"] for entry in entries] == [0.25, -0.125]
    for entry, other in zip(entries, files[1:], strict=True):
        assert entry == comparison_json(compare_files(files[0], other))["pairs"][0], "as the two files alone"


def test_many_files_continue_in_another_table(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{right}.json", right) for right in (0, 1, 2, 3, 4, 5, 6, 7)]
    table = comparison_table(compare_files(*files))
    assert [len(row) for row in cells(table, "rank1")] == [6 + 5, 3 + 2]
    assert cells(table, "rank1")[1] == ["0.0", "75.0", "87.5", "+75.0", "+87.5"]
    assert max(map(len, table.splitlines()[len(files) :])) <= 80


def test_rows_that_some_of_three_files_have(tmp_path: Path) -> None:
    """The plain rows of all are compared, and the re-ranked ones of the two that have them."""
    reranking = Reranking(neighbours=1)
    plain = written(tmp_path / "a.json", 2)
    files = [plain, written(tmp_path / "b.json", 6, reranking=reranking)]
    files += [written(tmp_path / "c.json", 0, reranking=reranking)]
    pairs = compare_files(*files)
    assert [(pair.positions, bool(pair.before["reranking"])) for pair in pairs] == [
        ((0, 1), False), ((0, 2), False), ((1, 2), True),
    ]  # fmt: skip
    (line,) = unpaired_rerankings(*files)
    assert f"compared with that of {files[1]}" in line
    table = comparison_table(pairs)
    assert cells(table, "rank1")[1][0] == "-"
    assert "differences to 2" in table
    with pytest.raises(DataError, match=r"a\.json and .*d\.json"):
        compare_files(*files, written(tmp_path / "d.json", 2, queries=QUERIES[:5]))


def test_score_norm_none_and_a_missing_one_are_the_same(tmp_path: Path) -> None:
    """Version 0.1.0 wrote no score_norm, and null where nothing was re-ranked."""
    first, second = written(tmp_path / "a.json", 2), written(tmp_path / "b.json", 6)
    content = json.loads(first.read_text())
    del content["check"], content["results"][0]["score_norm"]
    content["results"][0]["reranking"] = None
    first.write_text(json.dumps(content))
    (entry,) = comparison_json(compare_files(first, second, first))["pairs"][:1]
    assert (entry["score_norm"], entry["reranking"]) == ("none", "")
    assert unpaired_rerankings(first, second, first) == []


def test_the_same_file_twice_keeps_its_columns(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a.json", 2), written(tmp_path / "b.json", 6)
    table = comparison_table(compare_files(first, first, second))
    assert cells(table, "rank1") == [["25.0", "25.0", "75.0", "+0.0", "+50.0"]]
