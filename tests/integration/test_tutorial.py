"""Every command of docs/your-cameras.md runs, one after the other, on crops of a tiny street and,
where they lie beside the checkout, on real vehicles with published weights.
"""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.walking_people import TWO, write_video
from reid.cli import main
from reid.models.checkpoint import load_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "your-cameras.md"
WEIGHTS = Path(__file__).parents[2] / "demo" / "weights" / "small-plain.safetensors"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHARED = Path(__file__).parents[2].parent / "shared"
VEHICLES = SHARED / "data" / "vehicles" / "manifest.csv"
THEIRS = SHARED / "weights" / "osnet_x0_25_msmt17.pth"
CAMERAS = {"b1": "north", "b2": "south", "c1": "north", "c2": "south"}
CROPS = 20  # of each camera


def commands() -> list[str]:
    return [line for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")) for line in block.splitlines()]


@pytest.fixture(params=["street", "vehicles"])
def folder(request: pytest.FixtureRequest, tiny_street: Path, tmp_path: Path) -> Path:
    """What the page takes for granted: crops of two cameras, published weights, a query, two videos."""
    if request.param == "vehicles":
        if not (VEHICLES.is_file() and THEIRS.is_file()):
            pytest.skip("needs ../shared with real vehicles and weights beside the checkout, and it is not there")
        lay_out(VEHICLES, tmp_path)
        shutil.copy(THEIRS, tmp_path / "network.pth")
    else:
        lay_out(tiny_street / "street-b" / "manifest.csv", tmp_path)
        table = load_checkpoint(WEIGHTS).network.backbone.state_dict()  # type: ignore[union-attr, operator]
        torch.save({"state_dict": {f"module.{key}": value for key, value in table.items()}}, tmp_path / "network.pth")
    write_video(tmp_path / "north.mp4")
    write_video(tmp_path / "south.mp4", [replace(walk, start=(walk.start[0] + 3, walk.start[1] + 4)) for walk in TWO])
    return tmp_path


def lay_out(manifest: Path, folder: Path) -> None:
    """Some crops of two cameras as the page has them, camera/identity/image.jpg, and one of them as a query."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["camera"] in CAMERAS]
    if manifest == VEHICLES:
        asked = sorted({row["identity"] for row in rows if row["split"] == "query"})[::3][:CROPS]  # of all four kinds
        rows = [row for row in rows if row["identity"] in asked]
    for row in rows:
        target = folder / "crops" / CAMERAS[row["camera"]] / row["identity"] / Path(row["path"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(manifest.parent / row["path"], target)
        if row["split"] == "query":
            shutil.copyfile(target, folder / "query.jpg")


def test_ten_sections_of_commands() -> None:
    text = PAGE.read_text(encoding="utf-8")
    numbered = re.findall(r"^## (\d+)\. .*?\n```sh\nreid ", text, re.MULTILINE)
    assert numbered == [str(number) for number in range(1, 11)]
    assert all(line.startswith("reid ") for line in commands())


def test_every_command_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))  # no weights of a detector there
    shown = {}
    for line in commands():
        with pytest.raises(SystemExit) as caught:
            main(shlex.split(line)[1:])
        captured = capsys.readouterr()
        assert not caught.value.code, f"{line}\n{captured.err}"
        shown[" ".join(line.split()[1:3])] = captured.out
    assert f"cameras: north ({CROPS}), south ({CROPS})" in shown["init crops"]
    assert "north: " in shown["cameras report"]
    assert "south" in shown["cameras merge"]
    assert "as before" in shown["cameras watch"]
    assert "20 crops of 2 tracks" in shown["ingest north.mp4"]
    assert "20 crops of 2 tracks" in shown["ingest south.mp4"]
    assert len(shown["search query.jpg"].splitlines()) == 5
    assert all("\tsouth\t" in line for line in shown["search query.jpg"].splitlines())
    assert {"before.json", "after.json", "cameras.safetensors", "gallery"} <= {p.name for p in folder.iterdir()}
