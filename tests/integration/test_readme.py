"""What the README and the first pages of the documentation show runs: their commands, in their order, and their Python.

The crops are those of a tiny street.
"""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from reid.cli import main
from reid.data.manifest import read_manifest
from reid.models.networks.backbones import build_backbone
from reid.retrieval.gallery import Gallery

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
QUICK_START = ROOT / "docs" / "quick-start.md"
OWN_WEIGHTS = ROOT / "docs" / "own-weights.md"
CAMERAS = {"b1": "door", "b5": "yard"}  # a visible and an infrared camera


def blocks(page: Path, language: str) -> list[str]:
    """The fenced texts of ``language`` on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of ``reid`` on a page as a shell would read them: comments off, continued lines joined.

    ``reid start`` ends with a page that is served; ``test_start_cli.py`` runs it.
    """
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "reid" and words[1] != "start":
            yield words


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words[1:])
    captured = capsys.readouterr()
    assert not caught.value.code, f"{words}\n{captured.err}"
    return captured.out


@pytest.fixture
def crops(tiny_street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the README: crops/manifest.csv of the cameras "door" and "yard", a query of anna."""
    source = tiny_street / "street-b" / "manifest.csv"
    with source.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["camera"] in CAMERAS and row["category"] == "person"]
    anna = next(row["identity"] for row in rows if row["split"] == "query" and row["camera"] == "b1")
    (tmp_path / "crops").mkdir()
    for row in rows:
        shutil.copy(source.parent / row["path"], tmp_path / "crops" / Path(row["path"]).name)
        if row["identity"] == anna and row["camera"] == "b1":
            shutil.copy(source.parent / row["path"], tmp_path / "query.jpg")
        row.update(path=Path(row["path"]).name, camera=CAMERAS[row["camera"]])
        row["identity"] = "anna" if row["identity"] == anna else row["identity"]
    with (tmp_path / "crops" / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "crops" / "manifest.csv"


@pytest.mark.parametrize("page", [README, QUICK_START], ids=lambda page: page.stem)
def test_the_example_of_a_manifest_is_one(page: Path, tmp_path: Path) -> None:
    (text,) = blocks(page, "csv")
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        (tmp_path / row["path"]).touch()
    assert [sample.identity for sample in read_manifest(tmp_path / "manifest.csv")] == ["anna", "anna", ""]


@pytest.mark.parametrize("page", [README, QUICK_START], ids=lambda page: page.stem)
def test_the_commands_on_own_crops_run(page: Path, crops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {" ".join(words[1:3]): run(words, capsys) for words in commands(page)}
    assert len(shown) == {README: 7, QUICK_START: 5}[page]
    assert "visible->infrared" in shown["evaluate --data"]
    assert shown["search query.jpg"].count("\tyard\t") == 4
    assert "anna" in shown["search query.jpg"]
    assert "anna" in shown["index erase"]
    again = run(["reid", "search", "query.jpg", "--gallery", "galleries/crops", "--camera", "door"], capsys)
    assert "anna" not in again


@pytest.mark.parametrize("page", [README, QUICK_START], ids=lambda page: page.stem)
def test_ten_lines_of_python_build_and_score_a_gallery(
    page: Path, crops: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next(block for block in blocks(page, "python") if "import reid\n" in block)
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    exec(compile(code, page.name, "exec"), {"__name__": "readme"})  # noqa: S102 (our own page)
    shown = capsys.readouterr().out
    assert "person visible->infrared mAP 0." in shown
    gallery = Gallery.open(Path("galleries/python"))
    assert {sample.camera for sample in gallery.samples} == {"door", "yard"}


@pytest.mark.parametrize("page", [README, QUICK_START], ids=lambda page: page.stem)
def test_the_steps_run_on_a_manifest_of_reid_init(page: Path, crops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such a manifest has no rows of split train."""
    with crops.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "train"]
    for row in rows:
        target = Path("folder") / row["camera"] / row["identity"] / row["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(crops.parent / row["path"], target)
    shutil.rmtree("crops")
    Path("folder").rename("crops")
    run(["reid", "init", "crops"], capsys)
    code = next(block for block in blocks(page, "python") if "import reid\n" in block)
    exec(compile(code, page.name, "exec"), {"__name__": "readme"})  # noqa: S102 (our own page)
    assert "person all mAP 0." in capsys.readouterr().out
    shown = {" ".join(words[1:3]): run(words, capsys) for words in commands(page)}
    assert "anna" in shown["search query.jpg"]


def test_a_network_of_ones_own_takes_two_lines() -> None:
    (code,) = (block for block in blocks(README, "python") if "any_batchnorm_network" in block)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    images, domain = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    names = {"any_batchnorm_network": network, "images": images, "domain": domain}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 (our own page)
    assert torch.allclose(names["embeddings"], network(images), atol=1e-6)


def test_the_commands_on_own_weights_run(crops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build_backbone("osnet_x0_25").state_dict(), "osnet_x0_25_msmt17.pth")
    shown = [run(words, capsys) for words in commands(OWN_WEIGHTS)]
    assert "visible->infrared" in shown[0]
    assert (crops.parents[1] / "cameras.safetensors").stat().st_size > 0


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
