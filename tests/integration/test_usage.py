"""How commands are called: usage errors, scripts, and the names of version 0.1.0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.manifest_rows import write_changed
from reid.data.manifest import read_manifest
from reid.norm import Profiles

ROOT = Path(__file__).parents[2]


def test_usage_errors_exit_with_2_and_one_line(reid) -> None:
    for arguments, words in (
        (["nonsense"], "No such command 'nonsense'; see reid --help"),
        (["index", "find"], "No such command 'find'; see reid index --help"),
        (["search"], "Missing argument 'image'; see reid search --help"),
        (["evaluate", "--size", "big", "3"], "'--size': Input should be a valid integer"),
        (["evaluate", "--size", "3"], "Option '--size' requires 2 arguments; see --help"),
        (["evaluate", "--nonsense"], "No such option: --nonsense"),
        (["synth", "x", "--crops", "1"], "'--crops'"),
        (["init", "x", "--pattern", "*", "--protocol", "regdb"], "leave --pattern out"),
    ):
        code, out, err = reid(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert words in err
    code, out, err = reid("index")
    assert (code, err) == (2, "")
    assert "Usage: reid index" in out


def test_the_module_and_the_scripts_are_the_command(tmp_path: Path) -> None:
    for program in (
        ["-m", "reid.cli", "evaluate"],
        ["scripts/evaluate.py"],
        ["scripts/build_index.py"],
        ["scripts/train.py"],
    ):
        shown = subprocess.run(
            [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr
        assert "Usage: reid" in shown.stdout
    failed = subprocess.run(
        [sys.executable, ROOT / "scripts/evaluate.py", "--weights", "nowhere.pth"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: nowhere.pth")


def test_options_of_version_0_1_0_work_with_a_hint(reid, tiny_street: Path, tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    (folder / "north" / "anna").mkdir(parents=True)
    image = next((tiny_street / "street-a" / "images" / "query" / "person").glob("*.jpg"))
    (folder / "north" / "anna" / "1.jpg").write_bytes(image.read_bytes())
    for words in (("--domain", "vehicle"), ("--domain=vehicle",)):
        code, _, err = reid("init", folder, *words, "--force")
        assert code == 0, err
        assert err.splitlines() == ["hint: reid init --domain is now reid init --category"]
        assert {sample.category for sample in read_manifest(folder / "manifest.csv")} == {"vehicle"}
    code, out, err = reid("init", folder, "--domain", "person", "--category", "person")
    assert (code, out) == (1, "")
    assert "--domain" in err
    assert "--category" in err


def test_old_names_of_fields_and_gaps_measure_the_same(
    reid, other_manifest: Path, plain_weights: Path, tmp_path: Path
) -> None:
    hours = iter(range(1000))

    def with_time(row: dict[str, str]) -> dict[str, str]:
        minutes = next(hours)
        return {**row, "time": f"2024-05-31T{minutes // 60:02d}:{minutes % 60:02d}:00"}

    timed = write_changed(other_manifest, tmp_path / "timed.csv", with_time)
    common = ("calibrate", "--data", timed, "--weights", plain_weights, "--only", "person/b1")
    found = {}
    for name, words in (
        ("old", ("--by", "domain/camera", "--apart", "120")),
        ("new", ("--by", "category/camera", "--min-gap", "120")),
    ):
        code, _, err = reid(*common, *words, "--out", tmp_path / name)
        assert code == 0, err
        assert ("hint: reid calibrate --apart is now reid calibrate --min-gap" in err) == (name == "old")
        found[name] = Profiles.load(tmp_path / name)
    assert found["old"].images == found["new"].images
    assert found["old"].domain_fields == found["new"].domain_fields == ("category", "camera")


def test_commands_of_version_0_1_0_work_with_a_hint(reid, tmp_path: Path) -> None:
    results = ROOT / "tests" / "data" / "version_0_1_0" / "scores.json"
    code, new, err = reid("diff", results, results)
    assert (code, err) == (0, "")
    code, old, err = reid("evaluate", "--compare", results, results, "--json", tmp_path / "change.json")
    assert (code, old) == (0, new)
    assert err.splitlines() == ["hint: reid evaluate --compare is now reid diff"]
    assert json.loads((tmp_path / "change.json").read_text())["pairs"]
    code, old, _ = reid("evaluate", "--compare", results, results, results)
    assert (code, old) == (0, reid("diff", results, results, results)[1])
    code, _, err = reid("compare", tmp_path / "none.toml")
    hint, error = err.splitlines()
    assert code == 1
    assert hint == "hint: reid compare is now reid sweep"
    assert "none.toml" in error


def test_old_names_are_not_in_the_help(reid) -> None:
    shown = "".join(
        reid(*command, "--help")[1] for command in ((), ("init",), ("search",), ("calibrate",), ("evaluate",))
    )
    for name in ("--domain", "--apart", "--strips", "--compare", " compare "):
        assert name not in shown
    for name in ("--category", "--min-gap", "--query-examples", " diff ", " sweep "):
        assert name in shown


def test_the_page_is_served_with_the_options_given(reid, monkeypatch: pytest.MonkeyPatch) -> None:
    from reid.app import application

    given: list[str] = []
    monkeypatch.setattr(application, "main", lambda words: given.extend(words) or 7)
    code, _, _ = reid("serve", "--port", 0, "--data", "crops")
    assert code == 7
    assert given == ["--port=0", "--host=127.0.0.1", "--data=crops"]
