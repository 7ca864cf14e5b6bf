"""JSON and TOML of others that is nested without end, and names of any length: one line each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.walking_people import TWO, write_video

Fails = Callable[..., str]
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "z" * 50_000


def test_results_that_are_nested_too_deep(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(DEEP)
    assert "scores.json" in fails("diff", tmp_path / "scores.json", tmp_path / "scores.json")


@pytest.mark.parametrize("text", [DEEP, '{"sites": {"a": [' + "1" * 5000 + "]}}", '{"sites": [{}], "version": 1}'])
def test_the_plan_of_a_street(fails: Fails, tmp_path: Path, text: str) -> None:
    (tmp_path / "street.json").write_text(text)
    assert len(fails("synth", tmp_path, "--identities", 4)) < 1000


@pytest.mark.parametrize("text", [DEEP, '{"format": "reid-ingest-1", "camera": "' + LONG + '"}', "[1]"])
def test_the_settings_of_an_ingest(fails: Fails, tmp_path: Path, text: str) -> None:
    write_video(tmp_path / "walk.avi", TWO, frames=4)
    out = tmp_path / "crops"
    out.mkdir()
    (out / "ingest.json").write_text(text)
    line = fails("ingest", tmp_path / "walk.avi", "--camera", "x", "--out", out, "--detector", "hog")
    assert len(line) < 2000


@pytest.mark.parametrize(
    "rows",
    [
        f"path,identity,split\na.jpg,{LONG},query\n{LONG}.jpg,{LONG},gallery\n",
        f"path,identity,split\na.jpg,x,{LONG}\n",
        f"path,identity,split,time\na.jpg,x,query,{LONG}\n",
        f"path,identity,split,modality\na.jpg,x,query,{LONG}\n",
    ],
)
def test_cells_of_any_length(reid: Callable[..., tuple[int, str, str]], tmp_path: Path, rows: str) -> None:
    (tmp_path / "m.csv").write_text(rows)
    code, out, err = reid("validate", "--data", tmp_path / "m.csv")
    assert code == 1
    assert max(map(len, (out + err).splitlines())) < 3000


@pytest.mark.parametrize("text", [f"[data]\n{LONG} = 1\n", f'[data]\nmanifests = ["{LONG}"]\n', f"a = {DEEP}\n"])
def test_an_experiment(fails: Fails, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert len(fails("train", tmp_path / "run.toml", "--out", tmp_path / "run")) < 3000
    shutil.copyfile(tmp_path / "run.toml", tmp_path / "data.toml")
    assert len(fails("validate", "--data", tmp_path / "data.toml")) < 3000
