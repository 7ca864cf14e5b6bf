"""``reid evaluate --rerank`` and ``--expand-queries``: both forms of each, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reid.cli.rerank_options import join_numbers


def results(path: Path) -> list[dict]:
    return json.loads(path.read_text())["results"]


def test_both_forms_stand_beside_the_plain_numbers_or_decline(
    reid, tiny_street: Path, plain_weights: Path, tmp_path: Path
) -> None:
    """The tiny street has too few crops to tell how many an identity has, so the form by camera declines."""
    common = ("evaluate", "--data", tiny_street / "street-a", "--weights", plain_weights, "--json")
    assert reid(*common, tmp_path / "plain.json")[0] == 0
    assert reid(*common, tmp_path / "three.json", "--rerank", 5, 2, 0.3, "--flip")[0] == 0
    assert reid(*common, tmp_path / "one.json", "--rerank=5 2 0.3", "--flip")[0] == 0
    assert results(tmp_path / "three.json") == results(tmp_path / "one.json")
    code, out, err = reid(*common, tmp_path / "camera.json", "--rerank", "camera", "--expand-queries", "camera")
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines()[1:])
    entries = results(tmp_path / "camera.json")
    assert [entry for entry in entries if not entry["reranking"]] == results(tmp_path / "plain.json")
    changed = [entry for entry in entries if entry["reranking"]]
    assert {entry["score_norm"] for entry in changed} <= {"csls"}
    assert " ".join(out.split()).count("not used, because") == len(results(tmp_path / "plain.json")) - len(changed)


@pytest.mark.parametrize(
    "words",
    [
        ("--rerank", "20", "6"), ("--rerank", "20", "6", "1.5"), ("--rerank", "0", "6", "0.3"),
        ("--rerank", "20", "6", "nan"), ("--rerank", "2.5", "6", "0.3"), ("--rerank", "cameras"), ("--rerank",),
        ("--rerank", "camera", "20"), ("--rerank=",), ("--expand-queries", "-1"), ("--expand-queries", "cameras"),
        ("--expand-queries", "3", "--rerank", "camera"),
    ],
)  # fmt: skip
def test_other_values_are_not_understood(reid, words: tuple[str, ...]) -> None:
    code, out, err = reid("evaluate", "--data", "nowhere.csv", *words)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        (["--rerank", "1", "2", "0.3", "4"], ["--rerank", "1 2 0.3", "4"]),
        (["--rerank", "1", "--flip"], ["--rerank", "1", "--flip"]),
        (["--rerank=1", "2", "-3"], ["--rerank=1 2 -3"]),
        (["--rerank=camera", "2"], ["--rerank=camera", "2"]),
        (["--rerank=1 2 0.3", "--flip"], ["--rerank=1 2 0.3", "--flip"]),
        (["--size", "1", "2", "--reranker", "3"], ["--size", "1", "2", "--reranker", "3"]),
        ([], []),
    ],
)
def test_numbers_of_rerank_become_one_word(words: list[str], joined: list[str]) -> None:
    assert join_numbers(words) == joined
