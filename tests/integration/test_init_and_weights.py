"""``reid init`` and ``reid weights``: a folder of crops and public weights become an evaluation."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import pytest
import torch
from PIL import Image

from reid.data.manifest import read_manifest
from reid.models.networks.backbones import build_backbone
from reid.models.weights import public_weights as registry


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Make every address lead to the weights of an untrained OSNet, and return their bytes."""
    buffer = io.BytesIO()
    torch.manual_seed(0)
    torch.save(build_backbone("osnet_x0_25").state_dict(), buffer)

    class Answer(io.BytesIO):
        url = "https://models.example/net.pth"
        headers: ClassVar[dict[str, str]] = {}

    def opener(*args: Any, **kwargs: Any) -> Answer:
        return Answer(buffer.getvalue())

    monkeypatch.setattr(registry, "urlopen", opener)
    return buffer.getvalue()


def crops(folder: Path) -> Path:
    for number, name in enumerate(("north/anna/1", "north/bo/1", "south/anna/1", "south/bo/1")):
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (32, 64), (60 * number, 90, 120)).save(path)
    return folder


def test_a_folder_and_a_fetched_network_make_an_evaluation(reid, site: bytes, tmp_path: Path) -> None:
    code, out, err = reid("init", crops(tmp_path / "crops"))
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == [
        "identities: 2",
        "cameras: north (2), south (2)",
        "queries: 4",
        "rows of category person: 0 train, 4 query, 4 gallery",
    ]
    assert len(read_manifest(tmp_path / "crops" / "manifest.csv")) == 8

    code, out, err = reid("weights", "get", "osnet_x0_25_msmt17", "--out", tmp_path / "weights")
    assert code == 0, err
    path = tmp_path / "weights" / "osnet_x0_25_msmt17.pth"
    assert path.read_bytes() == site
    assert f"use it with --weights {path} --backbone osnet_x0_25" in out
    assert "could not be verified" in out

    data = ("--data", tmp_path / "crops", "--weights", path, "--backbone", "osnet_x0_25", "--size", 64, 32)
    code, out, err = reid("evaluate", *data, "--json", tmp_path / "scores.json")
    assert code == 0, err
    (result,) = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert (result["queries"], result["gallery"]) == (4, 4)
    assert "4/4" in err  # each image is a query and in the gallery, and is embedded once
    assert "8/8" not in err


def test_a_pattern_and_an_existing_manifest(reid, tmp_path: Path) -> None:
    folder = crops(tmp_path / "crops")
    code, out, _ = reid("init", folder, "--pattern", "{camera}/*/{identity}.jpg", "--category", "vehicle")
    assert code == 0
    assert out.splitlines()[1] == "identities: 1"
    assert {sample.category for sample in read_manifest(folder / "manifest.csv")} == {"vehicle"}
    code, out, err = reid("init", folder)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.endswith("(--force)\n")
    assert err.count("\n") == 1
    assert reid("init", folder, "--force")[0] == 0


def test_the_list_names_licence_and_training_data(reid) -> None:
    code, out, _ = reid("weights", "list")
    assert code == 0
    lines = {line.split("\t")[0]: line for line in out.splitlines()}
    assert "\tMSMT17, all images (for research)\tMIT (torchreid)" in lines["osnet_ain_x1_0_msmt17"]
    assert "by hand from https://" in lines["resnet50_fc512_msmt17"]
    rows = json.loads(reid("weights", "list", "--json")[1])
    assert [row["name"] for row in rows] == list(lines)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("osnet_x0_25_msmt71", 'did you mean "osnet_x0_25_msmt17"'),
        ("resnet50_msmt17", "no program can fetch it; download it from https://"),
        ("resnet50_imagenet", "the publisher's begins with 0676ba61: damaged or replaced"),
    ],
)
def test_weights_that_cannot_be_fetched_are_one_line(
    reid, site: bytes, name: str, message: str, tmp_path: Path
) -> None:
    code, out, err = reid("weights", "get", name, "--out", tmp_path / "weights")
    assert (code, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.pth*"))


def test_without_a_network_one_line_names_the_place_of_the_file(
    reid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def opener(*args: Any, **kwargs: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(registry, "urlopen", opener)
    code, _, err = reid("weights", "get", "osnet_x1_0_msmt17", "--out", tmp_path)
    assert code == 1
    assert err.splitlines()[-1].endswith(f"put it at {tmp_path / 'osnet_x1_0_msmt17.pth'}")
