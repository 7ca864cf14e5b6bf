"""Where masks are found, and which ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.errors import DataError
from reid.generation.mask_files import find_masks
from reid.records import Sample

SIZE = (6, 8)  # width, height


def save(path: Path, value: int = 255, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


@pytest.fixture
def crops(tmp_path: Path) -> list[Sample]:
    return [Sample(save(tmp_path / "crops" / folder / "1.png", 9)) for folder in ("x", "y")]


def test_a_folder_of_masks_is_laid_out_like_the_crops(crops: list[Sample], tmp_path: Path) -> None:
    mask = save(tmp_path / "masks" / "x" / "1.png")
    found = find_masks(crops, folder=tmp_path / "masks")
    assert found.files == {crops[0].path: mask}
    hidden = found.read(crops[0].path, SIZE)
    assert hidden is not None
    assert hidden.shape == (8, 6)
    assert hidden.all()
    assert found.read(crops[1].path, SIZE) is None


def test_a_name_that_two_crops_have_is_unclear(crops: list[Sample], tmp_path: Path) -> None:
    mask = save(tmp_path / "masks" / "1.png")
    with pytest.raises(DataError):
        find_masks(crops, folder=tmp_path / "masks")
    assert find_masks(crops[:1], folder=tmp_path / "masks").files == {crops[0].path: mask}


def test_masks_beside_the_crops_and_in_the_manifest(crops: list[Sample], tmp_path: Path) -> None:
    beside = save(crops[0].path.with_name("1.mask.png"))
    named = save(tmp_path / "m" / "first.png", 0)
    assert find_masks(crops).files == {crops[0].path: beside}
    manifest = tmp_path / "manifest.csv"
    text = "path,identity,split,mask\ncrops/x/1.png,a,gallery,{}\ncrops/y/1.png,b,gallery,\n"
    manifest.write_text(text.format("m/first.png"), encoding="utf-8")
    for source in (manifest, tmp_path):
        found = find_masks(crops, [str(source)])
        assert found.files == {crops[0].path: named}
        hidden = found.read(crops[0].path, SIZE)
        assert hidden is not None
        assert not hidden.any()
    manifest.write_text(text.format("m/second.png"), encoding="utf-8")
    with pytest.raises(DataError, match="second"):
        find_masks(crops, [str(manifest)])


def test_white_is_hidden_in_any_channel(crops: list[Sample], tmp_path: Path) -> None:
    pixels = np.zeros((8, 6, 3), np.uint8)
    pixels[0, 0] = (0, 128, 0)
    pixels[0, 1] = (127, 127, 127)
    mask = tmp_path / "masks" / "x" / "1.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(mask)
    hidden = find_masks(crops, folder=tmp_path / "masks").read(crops[0].path, SIZE)
    assert hidden is not None
    assert np.argwhere(hidden).tolist() == [[0, 0]]


def test_wrong_masks_are_refused(crops: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(DataError):
        find_masks(crops, folder=tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        find_masks(crops, folder=tmp_path / "empty")
    save(tmp_path / "masks" / "x" / "1.png", size=(3, 3))
    with pytest.raises(DataError, match="3 x 3"):
        find_masks(crops, folder=tmp_path / "masks").read(crops[0].path, SIZE)
    (tmp_path / "masks" / "x" / "1.png").write_text("no image", encoding="utf-8")
    with pytest.raises(DataError):
        find_masks(crops, folder=tmp_path / "masks").read(crops[0].path, SIZE)
