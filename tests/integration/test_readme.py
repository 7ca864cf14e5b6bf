"""The README holds: its commands on own crops and an own checkpoint run, in their order, on crops of a tiny street."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reid.cli import main
from reid.data.manifest import read_manifest
from reid.models.networks.backbones import build_backbone

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PLACES = {"b1": "door", "b5": "yard"}  # a visible and an infrared camera


def blocks(heading: str, language: str) -> str:
    """All fenced text of ``language`` in the section under ``heading``."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert section, heading
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL))


def commands(heading: str) -> Iterator[list[str]]:
    """The commands as a shell would read them: comments off, continued lines joined."""
    for line in blocks(heading, "sh").replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words[1:])
    captured = capsys.readouterr()
    assert words[0] == "reid"
    assert not caught.value.code, f"{words}\n{captured.err}"
    return captured.out


@pytest.fixture
def crops(tiny_street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the README: crops/manifest.csv of the cameras "door" and "yard", a query of anna."""
    source = tiny_street / "street-b" / "manifest.csv"
    with source.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["camera"] in PLACES and row["category"] == "person"]
    anna = next(row["identity"] for row in rows if row["split"] == "query" and row["camera"] == "b1")
    (tmp_path / "crops").mkdir()
    for row in rows:
        shutil.copy(source.parent / row["path"], tmp_path / "crops" / Path(row["path"]).name)
        if row["identity"] == anna and row["camera"] == "b1":
            shutil.copy(source.parent / row["path"], tmp_path / "query.jpg")
        row.update(path=Path(row["path"]).name, camera=PLACES[row["camera"]])
        row["identity"] = "anna" if row["identity"] == anna else row["identity"]
    with (tmp_path / "crops" / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "crops" / "manifest.csv"


def test_the_example_of_a_manifest_is_one(tmp_path: Path) -> None:
    text = blocks("Your own crops", "csv")
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        (tmp_path / row["path"]).touch()
    assert [sample.identity for sample in read_manifest(tmp_path / "manifest.csv")] == ["anna", "anna", ""]


def test_the_commands_on_own_crops_run(crops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {" ".join(words[1:3]): run(words, capsys) for words in commands("Your own crops")}
    assert "visible->infrared" in shown["evaluate --data"]
    assert shown["search query.jpg"].count("\tyard\t") == 4
    assert "anna" in shown["search query.jpg"]
    assert "anna" in shown["index erase"]
    again = run(["reid", "search", "query.jpg", "--gallery", "galleries/crops", "--camera", "door"], capsys)
    assert "anna" not in again


def test_the_commands_on_an_own_checkpoint_run(crops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build_backbone("osnet_x0_25").state_dict(), "osnet_x0_25_msmt17.pth")
    shown = [run(words, capsys) for words in commands("Your own checkpoint")]
    assert "visible->infrared" in shown[0]
    assert (crops.parents[1] / "cameras.safetensors").stat().st_size > 0
